// Max-IoU, ATSS and FCOS assignment on a GPU: a block of threads for every ground truth offers it to priors. The
// kernels choose exactly what matchers.cpp chooses.

#pragma once

#include "matchers/offers_gpu.h"

namespace detsearch::gpu {

constexpr int kLevelThreads = kWarp * kMaxLevels;  // ATSS: a warp for every level

__device__ inline uint64_t least_of_warp(uint64_t mine) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_down_sync(kWholeWarp, static_cast<unsigned long long>(mine), step);
    mine = other < mine ? other : mine;
  }
  return __shfl_sync(kWholeWarp, static_cast<unsigned long long>(mine), 0);
}

__device__ inline double sum_of_warp(double mine) {
  for (int step = kWarp / 2; step > 0; step /= 2) mine += __shfl_down_sync(kWholeWarp, mine, step);
  return __shfl_sync(kWholeWarp, mine, 0);
}

__global__ void clear_offers(const __grid_constant__ MatchArguments args) {
  const int64_t all = int64_t(args.images) * args.grid.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) args.offers[i] = kNone;
}

// positive_iou: below it an uncertain offer is ignored.
__global__ void finish_offers(const __grid_constant__ MatchArguments args, float positive_iou) {
  const int64_t all = int64_t(args.images) * args.grid.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    const uint64_t offer = args.offers[i];
    int64_t row = static_cast<uint32_t>(offer);
    if (offer == kNone) {
      row = kBackground;
    } else if ((offer & kUncertain) && static_cast<uint32_t>(offer >> 32 & 0x7fffffffu) > inverted(positive_iou)) {
      row = kIgnore;
    }
    // in place: each thread has read its own offer, and a result is as wide
    args.offers[i] = static_cast<uint64_t>(row);
  }
}

__device__ inline Box box_of(const MatchArguments& args, int32_t prior) {
  const DevicePosition at = position_of(args.grid, prior);
  return box_at(args.grid.levels[at.level], at.row, at.column, at.shape);
}

// Makes the offer of the ground truth that overlaps a prior most certain. All ground truths of the image are compared:
// the offers of other blocks may not be there yet.
__device__ inline void match_low_quality(const MatchArguments& args, int32_t image, int32_t prior) {
  const Box at = box_of(args, prior);
  const Span rows = args.rows_of(image);
  uint64_t best = kNone;
  for (int64_t g = rows.begin; g < rows.end; ++g) {
    const float overlap = finite(args.truth[g]) ? iou(at, args.truth[g]) : 0.0f;
    if (overlap > 0.0f) best = min(best, offer_of(inverted(overlap), g));
  }
  lower(args.offer(image, prior), best);
}

// above: the float below the threshold of background.
__global__ void __launch_bounds__(kMatchThreads)
    offer_overlaps(const __grid_constant__ MatchArguments args, float above, bool low_quality) {
  __shared__ Windows windows;
  __shared__ WarpPartials partials;
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  const Box truth = args.truth[g];
  if (!finite(truth)) return;  // by all threads of the block or none, so no barrier is missed
  const int32_t image = args.image_of(g);
  uint64_t mine = kNone;
  visit_near(args.grid, truth, above, windows, [&](const PriorCheck& check) {
    if (!check.fits) return;
    lower(args.offer(image, check.prior), kUncertain | offer_of(inverted(check.overlap), g));
    mine = min(mine, uint64_t(inverted(check.overlap)));
  });
  if (!low_quality) return;
  // the highest overlap is known only after all threads; a second visit costs less than a list of unknown length
  uint64_t best = least_of_block(mine, partials);
  if (best == kNone && above > 0.0f) {
    above = 0.0f;
    visit_near(args.grid, truth, above, windows, [&](const PriorCheck& check) {
      if (check.fits) mine = min(mine, uint64_t(inverted(check.overlap)));
    });
    best = least_of_block(mine, partials);
  }
  if (best == kNone) return;
  visit_near(args.grid, truth, above, windows, [&](const PriorCheck& check) {
    if (check.fits && inverted(check.overlap) == best) match_low_quality(args, image, check.prior);
  });
}

// radius: in strides.
__global__ void __launch_bounds__(kMatchThreads)
    offer_points(const __grid_constant__ MatchArguments args, float radius) {
  __shared__ Windows windows;
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  const Box truth = args.truth[g];
  if (!finite(truth)) return;
  const int32_t image = args.image_of(g);
  const uint64_t offer = offer_of(float_to_bits(area(truth)), g);
  visit_near(args.grid, truth, 0.0f, windows, [&](const PriorCheck& check) {
    if (!check.fits) return;
    const DevicePosition at = position_of(args.grid, check.prior);
    const float stride = args.grid.levels[at.level].stride;
    if (central(truth, centre(at.column, stride), centre(at.row, stride), radius * stride)) {
      lower(args.offer(image, check.prior), offer);
    }
  });
}

// The numbers of the `count` cells of a level with the nearest centres, of equally near ones the first; by a warp.
__device__ inline void nearest_cells(const Level& level, float x, float y, int32_t count, int32_t* nearest) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int64_t side = first_side(count);; side *= 2) {
    const Span columns = around(x, level.stride, side, level.width), rows = around(y, level.stride, side, level.height);
    const int64_t width = columns.end - columns.begin, cells = width * (rows.end - rows.begin);
    if (cells < count) continue;
    uint64_t last = 0;
    // the next above the last, `count` times: slower than sorting, but it needs no memory for the cells
    for (int32_t i = 0; i < count; ++i) {
      uint64_t mine = kNone;
      for (int64_t j = lane; j < cells; j += kWarp) {
        const int64_t row = rows.begin + j / width, column = columns.begin + j % width;
        const float far = squared(x - centre(column, level.stride), y - centre(row, level.stride));
        const uint64_t key = offer_of(float_to_bits(far), row * level.width + column);
        // 0 is a key as any other: the first cell when the point lies on its centre
        if ((i == 0 || key > last) && key < mine) mine = key;
      }
      last = least_of_warp(mine);
      if (lane == 0) nearest[i] = static_cast<int32_t>(last & 0xffffffffu);
    }
    if (surely_nearest(level, x, y, columns, rows, bits_to_float(static_cast<uint32_t>(last >> 32)))) return;
  }
}

// Calls visit(prior, IoU, distance to the nearest side) for the priors of the nearest cells, `top_k` a level. By
// one warp.
template <typename Visit>
__device__ void visit_nearest(const DeviceGrid& grid, const Box& truth, const int32_t* nearest, int32_t top_k,
                              const Visit& visit) {
  for (int32_t item = threadIdx.x % kWarp; item < grid.count * top_k * grid.shapes; item += kWarp) {
    const int32_t number = item / grid.shapes, shape = item % grid.shapes;
    const Level& level = grid.levels[number / top_k];
    if (number % top_k >= level.height * level.width) continue;  // a level of fewer cells fills only the first
    const int64_t row = nearest[number] / level.width, column = nearest[number] % level.width;
    const float overlap = iou(box_at(level, row, column, shape), truth);
    const float inside = depth(truth, centre(column, level.stride), centre(row, level.stride));
    visit(static_cast<int32_t>(level.prior(row, column, shape)), overlap, inside);
  }
}

// nearest: rows x levels x top_k, memory for the numbers of the nearest cells.
__global__ void __launch_bounds__(kLevelThreads)
    offer_nearest(const __grid_constant__ MatchArguments args, int32_t top_k, int32_t* nearest) {
  const DeviceGrid& grid = args.grid;
  const int32_t g = static_cast<int32_t>(blockIdx.x), warp = static_cast<int32_t>(threadIdx.x / kWarp);
  const Box truth = args.truth[g];
  if (!finite(truth)) return;
  int32_t* own_nearest = nearest + int64_t(g) * grid.count * top_k;
  if (warp < grid.count) {
    const Level& level = grid.levels[warp];
    const int64_t cells = level.height * level.width;
    nearest_cells(level, middle(truth.x1, truth.x2), middle(truth.y1, truth.y2),
                  static_cast<int32_t>(min(int64_t(top_k), cells)), own_nearest + warp * top_k);
  }
  __syncthreads();       // what the warps wrote to `nearest` is read below
  if (warp > 0) return;  // some hundred candidates are work for one warp, which needs no barriers
  // float64, so that the order of summation does not decide: the CPU has another
  double count = 0.0, sum = 0.0, spread = 0.0;
  visit_nearest(grid, truth, own_nearest, top_k, [&](int32_t, float overlap, float) {
    count += 1.0;
    sum += overlap;
  });
  count = sum_of_warp(count);
  const double mean = sum_of_warp(sum) / count;
  visit_nearest(grid, truth, own_nearest, top_k,
                [&](int32_t, float overlap, float) { spread += (overlap - mean) * (overlap - mean); });
  spread = sum_of_warp(spread);
  const double threshold = count > 1.0 ? mean + sqrt(spread / (count - 1.0)) : mean;
  const int32_t image = args.image_of(g);
  visit_nearest(grid, truth, own_nearest, top_k, [&](int32_t prior, float overlap, float inside) {
    if (overlap >= threshold && inside > 0.01f) lower(args.offer(image, prior), offer_of(inverted(overlap), g));
  });
}

}  // namespace detsearch::gpu
