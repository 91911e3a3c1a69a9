// The kernels of SimOTA on a GPU: they mark the candidates, sum the classes of each once, choose for every ground truth
// in a block of threads, and settle what several chose. Costs are those of simota.cpp, to the last bit.

#pragma once

#include "matchers/offers_gpu.h"

namespace detsearch::gpu {

constexpr int kSimotaThreads = 256;

struct SimotaArguments {
  MatchArguments match;  // its offers hold the result: the lowest row that chose a prior, kNone before
  Scores scores[kMaxLevels];
  const Box* boxes;  // predicted, images x priors
  const int64_t* label;
  int32_t classes, top_k;
  float radius;
  uint8_t* is_candidate;  // images x priors: candidates of any ground truth
  float* sum;             // images x priors: of softplus over the classes of a candidate
  int32_t* num_choosers;  // images x priors: how many rows chose it
  int32_t* chosen;        // rows x top_k: priors, or -1

  __device__ int64_t at(int32_t image, int32_t prior) const { return int64_t(image) * match.grid.priors + prior; }
  // The CPU refuses labels that are no classes; telling the host would stall it, so here such a row gets nothing.
  __device__ bool usable(int64_t g) const { return finite(match.truth[g]) && label[g] >= 0 && label[g] < classes; }
};

static_assert(sizeof(SimotaArguments) <= 4096, "the arguments of a kernel may take 4 KiB");

__global__ void clear_simota(const __grid_constant__ SimotaArguments args) {
  const int64_t all = int64_t(args.match.images) * args.match.grid.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    args.match.offers[i] = kNone;  // all bits are 1: as an int64 it is -1, background, which most priors stay
    args.is_candidate[i] = 0;
    args.num_choosers[i] = 0;
  }
}

// Marks what is inside a ground truth or near its middle; a block for each.
__global__ void __launch_bounds__(kSimotaThreads) mark_candidates(const __grid_constant__ SimotaArguments args) {
  const DeviceGrid& grid = args.match.grid;
  const int32_t g = static_cast<int32_t>(blockIdx.x), image = args.match.image_of(g);
  if (!args.usable(g)) return;
  const Box truth = args.match.truth[g];
  for (int32_t i = 0; i < grid.count; ++i) {
    const Level& level = grid.levels[i];
    const float reach = args.radius * level.stride;
    const Span columns = columns_near(level, truth, reach), rows = rows_near(level, truth, reach);
    const int64_t width = columns.end - columns.begin, cells = width * (rows.end - rows.begin);
    for (int64_t j = threadIdx.x; j < cells; j += blockDim.x) {
      const int64_t row = rows.begin + j / width, column = columns.begin + j % width;
      const float x = centre(column, level.stride), y = centre(row, level.stride);
      if (!(depth(truth, x, y) > 0.0f) && !central(truth, x, y, reach)) continue;
      for (int32_t shape = 0; shape < grid.shapes; ++shape) {
        // no atomic: every block that comes here writes the same byte
        args.is_candidate[args.at(image, static_cast<int32_t>(level.prior(row, column, shape)))] = 1;
      }
    }
  }
}

// The class sum of every candidate: sixteen threads take a prior, each one of the partial sums of kLanes.
__global__ void __launch_bounds__(kSimotaThreads) sum_classes(const __grid_constant__ SimotaArguments args) {
  const int64_t all = int64_t(args.match.images) * args.match.grid.priors;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  // sixteen threads are half a warp; the mask names that half alone, because the other half may have returned
  const unsigned lane = threadIdx.x % kLanes, others = 0xffffu << (threadIdx.x / kLanes * kLanes % kWarp);
  if (i >= all || !args.is_candidate[i]) return;
  const int32_t image = static_cast<int32_t>(i / args.match.grid.priors);
  const DevicePosition position = position_of(args.match.grid, static_cast<int32_t>(i % args.match.grid.priors));
  const Scores& scores = args.scores[position.level];
  const float* logits = scores.at(image, position.row, position.column, position.shape);
  float sum = 0.0f;
  for (int64_t c = lane; c < args.classes; c += kLanes) sum += softplus(logits[c * scores.class_stride]);
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_down_sync(others, sum, step, kLanes);
  if (lane == 0) args.sum[i] = sum;
}

__device__ inline float overlap_with(const SimotaArguments& args, int32_t image, int32_t prior, const Box& truth) {
  const Box predicted = args.boxes[args.at(image, prior)];
  return finite(predicted) ? iou(predicted, truth) : 0.0f;
}

// Orders as (outside, cost) do: 32 bits. A cost is never negative, so its sign bit is free for `outside`.
__device__ inline uint32_t rank_of(const SimotaArguments& args, int32_t image, int32_t prior, int64_t g) {
  const Box& truth = args.match.truth[g];
  const DevicePosition position = position_of(args.match.grid, prior);
  const Scores& scores = args.scores[position.level];
  const float stride = args.match.grid.levels[position.level].stride;
  const float own =
      scores.at(image, position.row, position.column, position.shape)[args.label[g] * scores.class_stride];
  const float bound = cost_bound(own, overlap_with(args, image, prior, truth));
  const float x = centre(position.column, stride), y = centre(position.row, stride);
  const bool both = depth(truth, x, y) > 0.0f && central(truth, x, y, args.radius * stride);
  return float_to_bits(cost_of(bound, own, args.sum[args.at(image, prior)])) | (both ? 0u : 1u << 31);
}

// The next key after `last` in order, among the candidates of an image; kNone where there is none. All threads of a
// block must call it, and all get it.
template <typename Key>
__device__ uint64_t next_key(const SimotaArguments& args, int32_t image, bool first, uint64_t last,
                             WarpPartials& partials, const Key& key_of) {
  uint64_t mine = kNone;
  for (int32_t prior = threadIdx.x; prior < args.match.grid.priors; prior += blockDim.x) {
    if (!args.is_candidate[args.at(image, prior)]) continue;
    const uint64_t key = key_of(prior);
    // 0 is a key as any other, so `first` says that there is no last one
    if ((first || key > last) && key < mine) mine = key;
  }
  return least_of_block(mine, partials);
}

// The sum of the highest IoUs with predictions, rounded down, at least 1.
__device__ inline int32_t dynamic_k(const SimotaArguments& args, int32_t image, const Box& truth,
                                    WarpPartials& partials) {
  double sum = 0.0;  // float64, so that the order of summation does not decide what is rounded down
  uint64_t last = 0;
  for (int32_t i = 0; i < args.top_k; ++i) {
    last = next_key(args, image, i == 0, last, partials,
                    [&](int32_t prior) { return offer_of(inverted(overlap_with(args, image, prior, truth)), prior); });
    if (last == kNone) break;
    // every thread adds the same, so that all return the same number
    sum += bits_to_float(0x7fffffffu - static_cast<uint32_t>(last >> 32));
  }
  return max(1, static_cast<int32_t>(sum));
}

// Chooses the priors of a ground truth; a block for each.
__global__ void __launch_bounds__(kSimotaThreads) choose_lowest(const __grid_constant__ SimotaArguments args) {
  __shared__ WarpPartials partials;
  const int32_t g = static_cast<int32_t>(blockIdx.x), image = args.match.image_of(g);
  const bool usable = args.usable(g);
  // a ground truth that is not usable goes through the loop too: it must write -1 to `chosen`, and no thread misses a
  // barrier
  const int32_t count = usable ? dynamic_k(args, image, args.match.truth[g], partials) : 0;
  uint64_t last = 0;
  for (int32_t i = 0; i < args.top_k; ++i) {
    if (i < count && (i == 0 || last != kNone)) {
      last = next_key(args, image, i == 0, last, partials,
                      [&](int32_t prior) { return offer_of(rank_of(args, image, prior, g), prior); });
    } else {
      last = kNone;
    }
    if (threadIdx.x > 0) continue;
    const int32_t prior = last == kNone ? -1 : static_cast<int32_t>(last & 0xffffffffu);
    args.chosen[int64_t(g) * args.top_k + i] = prior;
    if (prior < 0) continue;
    atomicAdd(&args.num_choosers[args.at(image, prior)], 1);
    // the result where nobody else chose it; settle_contested corrects the others
    lower(args.match.offer(image, prior), static_cast<uint64_t>(g));
  }
}

// A prior that several chose goes to the row of its image with the lowest cost. All threads of those rows write the
// same.
__global__ void settle_contested(const __grid_constant__ SimotaArguments args) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= int64_t(args.match.rows) * args.top_k || args.chosen[i] < 0) return;
  const int32_t prior = args.chosen[i], image = args.match.image_of(i / args.top_k);
  if (args.num_choosers[args.at(image, prior)] < 2) return;
  const Span rows = args.match.rows_of(image);
  uint64_t best = kNone;
  for (int64_t g = rows.begin; g < rows.end; ++g) {
    if (args.usable(g)) best = min(best, offer_of(rank_of(args, image, prior, g), g));
  }
  *args.match.offer(image, prior) = best & 0xffffffffu;
}

}  // namespace detsearch::gpu
