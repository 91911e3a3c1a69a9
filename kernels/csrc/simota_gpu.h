// SimOTA on a GPU: it marks the candidates, sums their classes once, lets a block of threads choose for every ground
// truth, and settles what several chose. Costs are those of simota.cpp, to the last bit.

#pragma once

#include "matchers_gpu.h"

namespace detsearch::gpu {

constexpr int kCostThreads = 256;

struct Costs {
  Scene scene;  // its offers hold the result: the lowest row that chose a prior, kNone before
  Scores scores[kMostLevels];
  const Box* boxes;  // predicted, images x priors
  const int64_t* label;
  int32_t classes, top_k;
  float radius;
  uint8_t* known;   // images x priors: candidates of any ground truth
  float* sum;       // images x priors: of softplus over the classes of a candidate
  int32_t* takers;  // images x priors: how many rows chose it
  int32_t* chosen;  // rows x top_k: priors, or -1

  __device__ int64_t at(int32_t image, int32_t prior) const { return int64_t(image) * scene.tiles.priors + prior; }
  // The CPU refuses labels that are no classes; telling the host would stall it, so here such a row gets nothing.
  __device__ bool usable(int64_t g) const {
    return finite(scene.truth[g]) && label[g] >= 0 && label[g] < classes;
  }
};

static_assert(sizeof(Costs) <= 4096, "the arguments of a kernel may take 4 KiB");

__global__ void clear_costs(const __grid_constant__ Costs costs) {
  const int64_t all = int64_t(costs.scene.images) * costs.scene.tiles.priors, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
    costs.scene.offers[i] = kNone;
    costs.known[i] = 0;
    costs.takers[i] = 0;
  }
}

// Marks what is inside a ground truth or near its middle; a block for each.
__global__ void __launch_bounds__(kCostThreads) mark_candidates(const __grid_constant__ Costs costs) {
  const Tiles& tiles = costs.scene.tiles;
  const int32_t g = static_cast<int32_t>(blockIdx.x), image = costs.scene.image_of(g);
  if (!costs.usable(g)) return;
  const Box truth = costs.scene.truth[g];
  for (int32_t i = 0; i < tiles.count; ++i) {
    const Level& level = tiles.levels[i];
    const float reach = costs.radius * level.stride;
    const Span columns = columns_near(level, truth, reach), rows = rows_near(level, truth, reach);
    const int64_t width = columns.end - columns.begin, cells = width * (rows.end - rows.begin);
    for (int64_t j = threadIdx.x; j < cells; j += blockDim.x) {
      const int64_t row = rows.begin + j / width, column = columns.begin + j % width;
      const float x = centre(column, level.stride), y = centre(row, level.stride);
      if (!(depth(truth, x, y) > 0.0f) && !central(truth, x, y, reach)) continue;
      for (int32_t shape = 0; shape < tiles.shapes; ++shape) {
        costs.known[costs.at(image, static_cast<int32_t>(level.prior(row, column, shape)))] = 1;
      }
    }
  }
}

// The class sum of every candidate: sixteen threads take a prior, each one of the partial sums of kLanes.
__global__ void __launch_bounds__(kCostThreads) sum_classes(const __grid_constant__ Costs costs) {
  const int64_t all = int64_t(costs.scene.images) * costs.scene.tiles.priors;
  const int64_t i = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
  const unsigned lane = threadIdx.x % kLanes, others = 0xffffu << (threadIdx.x / kLanes * kLanes % kWarp);
  if (i >= all || !costs.known[i]) return;
  const int32_t image = static_cast<int32_t>(i / costs.scene.tiles.priors);
  const Cell cell = cell_of(costs.scene.tiles, static_cast<int32_t>(i % costs.scene.tiles.priors));
  const Scores& scores = costs.scores[cell.level];
  const float* logits = scores.at(image, cell.row, cell.column, cell.shape);
  float sum = 0.0f;
  for (int64_t c = lane; c < costs.classes; c += kLanes) sum += softplus(logits[c * scores.of_class]);
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_down_sync(others, sum, step, kLanes);
  if (lane == 0) costs.sum[i] = sum;
}

__device__ inline float overlap_with(const Costs& costs, int32_t image, int32_t prior, const Box& truth) {
  const Box predicted = costs.boxes[costs.at(image, prior)];
  return finite(predicted) ? iou(predicted, truth) : 0.0f;
}

// Orders as (outside, cost) do: 32 bits.
__device__ inline uint32_t rank_of(const Costs& costs, int32_t image, int32_t prior, int64_t g) {
  const Box& truth = costs.scene.truth[g];
  const Cell cell = cell_of(costs.scene.tiles, prior);
  const Scores& scores = costs.scores[cell.level];
  const float stride = costs.scene.tiles.levels[cell.level].stride;
  const float own = scores.at(image, cell.row, cell.column, cell.shape)[costs.label[g] * scores.of_class];
  const float bound = cost_bound(own, overlap_with(costs, image, prior, truth));
  const float x = centre(cell.column, stride), y = centre(cell.row, stride);
  const bool both = depth(truth, x, y) > 0.0f && central(truth, x, y, costs.radius * stride);
  return float_to_bits(cost_of(bound, own, costs.sum[costs.at(image, prior)])) | (both ? 0u : 1u << 31);
}

// The next key after `last` in order, over the candidates of an image, for all threads of a block; kNone after the last.
template <typename Key>
__device__ uint64_t next_key(const Costs& costs, int32_t image, bool first, uint64_t last, Votes& votes, const Key& key_of) {
  uint64_t mine = kNone;
  for (int32_t prior = threadIdx.x; prior < costs.scene.tiles.priors; prior += blockDim.x) {
    if (!costs.known[costs.at(image, prior)]) continue;
    const uint64_t key = key_of(prior);
    if ((first || key > last) && key < mine) mine = key;
  }
  return least_of_block(mine, votes);
}

// The sum of the highest IoUs with predictions, rounded down, at least 1.
__device__ inline int32_t wanted(const Costs& costs, int32_t image, const Box& truth, Votes& votes) {
  double sum = 0.0;
  uint64_t last = 0;
  for (int32_t i = 0; i < costs.top_k; ++i) {
    last = next_key(costs, image, i == 0, last, votes, [&](int32_t prior) {
      return offer_of(inverted(overlap_with(costs, image, prior, truth)), prior);
    });
    if (last == kNone) break;
    sum += bits_to_float(0x7fffffffu - static_cast<uint32_t>(last >> 32));
  }
  return max(1, static_cast<int32_t>(sum));
}

// What a ground truth chooses; a block for each.
__global__ void __launch_bounds__(kCostThreads) choose_lowest(const __grid_constant__ Costs costs) {
  __shared__ Votes votes;
  const int32_t g = static_cast<int32_t>(blockIdx.x), image = costs.scene.image_of(g);
  const bool usable = costs.usable(g);
  const int32_t count = usable ? wanted(costs, image, costs.scene.truth[g], votes) : 0;
  uint64_t last = 0;
  for (int32_t i = 0; i < costs.top_k; ++i) {
    if (i < count && (i == 0 || last != kNone)) {
      last = next_key(costs, image, i == 0, last, votes, [&](int32_t prior) {
        return offer_of(rank_of(costs, image, prior, g), prior);
      });
    } else {
      last = kNone;
    }
    if (threadIdx.x > 0) continue;
    const int32_t prior = last == kNone ? -1 : static_cast<int32_t>(last & 0xffffffffu);
    costs.chosen[int64_t(g) * costs.top_k + i] = prior;
    if (prior < 0) continue;
    atomicAdd(&costs.takers[costs.at(image, prior)], 1);
    lower(costs.scene.offer(image, prior), static_cast<uint64_t>(g));
  }
}

// A prior that several chose goes to the row of its image that it costs least. All who chose it write the same.
__global__ void settle_contested(const __grid_constant__ Costs costs) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= int64_t(costs.scene.rows) * costs.top_k || costs.chosen[i] < 0) return;
  const int32_t prior = costs.chosen[i], image = costs.scene.image_of(i / costs.top_k);
  if (costs.takers[costs.at(image, prior)] < 2) return;
  const Span rows = costs.scene.rows_of(image);
  uint64_t best = kNone;
  for (int64_t g = rows.begin; g < rows.end; ++g) {
    if (costs.usable(g)) best = min(best, offer_of(rank_of(costs, image, prior, g), g));
  }
  *costs.scene.offer(image, prior) = best & 0xffffffffu;
}

}  // namespace detsearch::gpu
