// Max-IoU, ATSS and FCOS assignment on a GPU: a block of threads for every ground truth offers it to priors, and a prior
// keeps the best offer by an atomic minimum, so that the order of blocks does not matter. They choose exactly what
// matchers.cpp chooses.

#pragma once

#include "grid_gpu.h"
#include "matchers.h"

namespace detsearch::gpu {

constexpr int kMatchThreads = 128;
constexpr int kLevelThreads = kWarp * kMostLevels;  // ATSS: a warp for every level

// What all kernels are told. Of `truth` the rows of an image lie together.
struct Scene {
  Tiles tiles;
  const Box* truth;
  const int64_t* splits;
  int32_t rows, images;
  uint64_t* offers;  // images x priors; finish_offers turns them into the result in place

  __device__ int32_t image_of(int64_t row) const {
    int32_t low = 0, high = images;  // the last whose rows begin at or before it
    while (high - low > 1) {
      const int32_t between = (low + high) / 2;
      (splits[between] <= row ? low : high) = between;
    }
    return low;
  }
  // The rows of an image; splits that say otherwise must not lead out of memory.
  __device__ Span rows_of(int32_t image) const {
    const int64_t begin = splits[image], end = splits[image + 1];
    return {begin > 0 ? begin : 0, end < rows ? end : rows};
  }
  __device__ uint64_t* offer(int32_t image, int32_t prior) const {
    return offers + int64_t(image) * tiles.priors + prior;
  }
};

// An offer: whether it still depends on the IoU, then what is lowest for the best, then the row. kNone: no offer.
constexpr uint64_t kUncertain = uint64_t(1) << 63;

__device__ inline uint32_t inverted(float overlap) { return 0x7fffffffu - float_to_bits(overlap); }

__device__ inline uint64_t offer_of(uint32_t rank, int64_t g) {
  return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(g);
}

__device__ inline void lower(uint64_t* at, uint64_t value) {
  atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

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

__global__ void clear_offers(const __grid_constant__ Scene scene) {
  const int64_t all = int64_t(scene.images) * scene.tiles.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) scene.offers[i] = kNone;
}

// positive_iou: below it an uncertain offer is ignored.
__global__ void finish_offers(const __grid_constant__ Scene scene, float positive_iou) {
  const int64_t all = int64_t(scene.images) * scene.tiles.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    const uint64_t offer = scene.offers[i];
    int64_t row = static_cast<uint32_t>(offer);
    if (offer == kNone) {
      row = kBackground;
    } else if ((offer & kUncertain) && static_cast<uint32_t>(offer >> 32 & 0x7fffffffu) > inverted(positive_iou)) {
      row = kIgnore;
    }
    scene.offers[i] = static_cast<uint64_t>(row);
  }
}

__device__ inline Box box_of(const Scene& scene, int32_t prior) {
  const Cell at = cell_of(scene.tiles, prior);
  return box_at(scene.tiles.levels[at.level], at.row, at.column, at.shape);
}

// A prior that is some ground truth's best is certain, for the one that overlaps it most.
__device__ inline void rescue(const Scene& scene, int32_t image, int32_t prior) {
  const Box at = box_of(scene, prior);
  const Span rows = scene.rows_of(image);
  uint64_t best = kNone;
  for (int64_t g = rows.begin; g < rows.end; ++g) {
    const float overlap = finite(scene.truth[g]) ? iou(at, scene.truth[g]) : 0.0f;
    if (overlap > 0.0f) best = min(best, offer_of(inverted(overlap), g));
  }
  lower(scene.offer(image, prior), best);
}

// above: the float below the threshold of background.
__global__ void __launch_bounds__(kMatchThreads)
    offer_overlaps(const __grid_constant__ Scene scene, float above, bool low_quality) {
  __shared__ Windows windows;
  __shared__ Votes votes;
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  const Box truth = scene.truth[g];
  if (!finite(truth)) return;
  const int32_t image = scene.image_of(g);
  uint64_t mine = kNone;
  visit_near(scene.tiles, truth, above, windows, [&](const Look& look) {
    if (!look.fits) return;
    lower(scene.offer(image, look.prior), kUncertain | offer_of(inverted(look.overlap), g));
    mine = min(mine, uint64_t(inverted(look.overlap)));
  });
  if (!low_quality) return;
  uint64_t best = least_of_block(mine, votes);
  if (best == kNone && above > 0.0f) {
    above = 0.0f;
    visit_near(scene.tiles, truth, above, windows, [&](const Look& look) {
      if (look.fits) mine = min(mine, uint64_t(inverted(look.overlap)));
    });
    best = least_of_block(mine, votes);
  }
  if (best == kNone) return;
  visit_near(scene.tiles, truth, above, windows, [&](const Look& look) {
    if (look.fits && inverted(look.overlap) == best) rescue(scene, image, look.prior);
  });
}

// radius: in strides.
__global__ void __launch_bounds__(kMatchThreads) offer_points(const __grid_constant__ Scene scene, float radius) {
  __shared__ Windows windows;
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  const Box truth = scene.truth[g];
  if (!finite(truth)) return;
  const int32_t image = scene.image_of(g);
  const uint64_t offer = offer_of(float_to_bits(area(truth)), g);
  visit_near(scene.tiles, truth, 0.0f, windows, [&](const Look& look) {
    if (!look.fits) return;
    const Cell at = cell_of(scene.tiles, look.prior);
    const float stride = scene.tiles.levels[at.level].stride;
    if (central(truth, centre(at.column, stride), centre(at.row, stride), radius * stride)) {
      lower(scene.offer(image, look.prior), offer);
    }
  });
}

// The numbers of the `count` cells of a level with the nearest centres, of equally near ones the first; by a warp.
__device__ inline void nearest_cells(const Level& level, float x, float y, int32_t count, int32_t* found) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int64_t side = first_side(count);; side *= 2) {
    const Span columns = around(x, level.stride, side, level.width), rows = around(y, level.stride, side, level.height);
    const int64_t width = columns.end - columns.begin, cells = width * (rows.end - rows.begin);
    if (cells < count) continue;
    uint64_t last = 0;
    for (int32_t i = 0; i < count; ++i) {
      uint64_t mine = kNone;
      for (int64_t j = lane; j < cells; j += kWarp) {
        const int64_t row = rows.begin + j / width, column = columns.begin + j % width;
        const float far = squared(x - centre(column, level.stride), y - centre(row, level.stride));
        const uint64_t key = offer_of(float_to_bits(far), row * level.width + column);
        if ((i == 0 || key > last) && key < mine) mine = key;
      }
      last = least_of_warp(mine);
      if (lane == 0) found[i] = static_cast<int32_t>(last & 0xffffffffu);
    }
    if (surely_nearest(level, x, y, columns, rows, bits_to_float(static_cast<uint32_t>(last >> 32)))) return;
  }
}

// Calls visit(prior, IoU, distance to the nearest side) for the priors of the cells found, `top_k` a level, by one warp.
template <typename Visit>
__device__ void visit_found(const Tiles& tiles, const Box& truth, const int32_t* found, int32_t top_k,
                            const Visit& visit) {
  for (int32_t slot = threadIdx.x % kWarp; slot < tiles.count * top_k * tiles.shapes; slot += kWarp) {
    const int32_t place = slot / tiles.shapes, shape = slot % tiles.shapes;
    const Level& level = tiles.levels[place / top_k];
    if (place % top_k >= level.height * level.width) continue;
    const int64_t row = found[place] / level.width, column = found[place] % level.width;
    const float overlap = iou(box_at(level, row, column, shape), truth);
    const float inside = depth(truth, centre(column, level.stride), centre(row, level.stride));
    visit(static_cast<int32_t>(level.prior(row, column, shape)), overlap, inside);
  }
}

// nearest: rows x levels x top_k, memory for the cells found.
__global__ void __launch_bounds__(kLevelThreads)
    offer_nearest(const __grid_constant__ Scene scene, int32_t top_k, int32_t* nearest) {
  const Tiles& tiles = scene.tiles;
  const int32_t g = static_cast<int32_t>(blockIdx.x), warp = static_cast<int32_t>(threadIdx.x / kWarp);
  const Box truth = scene.truth[g];
  if (!finite(truth)) return;
  int32_t* found = nearest + int64_t(g) * tiles.count * top_k;
  if (warp < tiles.count) {
    const Level& level = tiles.levels[warp];
    const int64_t cells = level.height * level.width;
    nearest_cells(level, middle(truth.x1, truth.x2), middle(truth.y1, truth.y2),
                  static_cast<int32_t>(min(int64_t(top_k), cells)), found + warp * top_k);
  }
  __syncthreads();
  if (warp > 0) return;
  double count = 0.0, sum = 0.0, spread = 0.0;
  visit_found(tiles, truth, found, top_k, [&](int32_t, float overlap, float) {
    count += 1.0;
    sum += overlap;
  });
  count = sum_of_warp(count);
  const double mean = sum_of_warp(sum) / count;
  visit_found(tiles, truth, found, top_k, [&](int32_t, float overlap, float) {
    spread += (overlap - mean) * (overlap - mean);
  });
  spread = sum_of_warp(spread);
  const double threshold = count > 1.0 ? mean + sqrt(spread / (count - 1.0)) : mean;
  const int32_t image = scene.image_of(g);
  visit_found(tiles, truth, found, top_k, [&](int32_t prior, float overlap, float inside) {
    if (overlap >= threshold && inside > 0.01f) lower(scene.offer(image, prior), offer_of(inverted(overlap), g));
  });
}

}  // namespace detsearch::gpu
