// Max-IoU, ATSS, FCOS and SimOTA assignment of a whole batch on a GPU: matchers_gpu.h and simota_gpu.h, launched. The
// host waits for nothing: what it would have to read first (labels, splits) is not checked here.

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "grid.h"
#include "simota_gpu.h"

namespace detsearch::gpu {
namespace {

int64_t blocks_for(int64_t threads, int64_t of_block) { return std::max<int64_t>(1, (threads + of_block - 1) / of_block); }

// The operands all take; `points` says whether candidates are found by distances.
struct Match {
  Match(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cells, const Tensor& strides,
        const Tensor& ranges, int64_t priors, bool points)
      : stream(truth),
        cell(torch::stable::to(cells, truth.device(), true)),  // no waiting
        grid(read_grid(sizes, cell, strides, ranges, priors)),
        matched(torch::stable::new_empty(splits, {splits.size(0) - 1, priors})) {
    STD_TORCH_CHECK(grid.count() <= kMostLevels, "at most ", kMostLevels, " levels on a GPU, got ", grid.count());
    STD_TORCH_CHECK(priors < kMostPriors, "at most ", kMostPriors, " priors on a GPU, got ", priors);
    STD_TORCH_CHECK(truth.size(0) < kMostPriors, "too many ground truths for a GPU: ", truth.size(0));
    scene.tiles.count = static_cast<int32_t>(grid.count());
    scene.tiles.shapes = static_cast<int32_t>(cell.size(1));
    scene.tiles.priors = static_cast<int32_t>(priors);
    scene.tiles.points = points;
    std::copy(grid.levels.begin(), grid.levels.end(), scene.tiles.levels);
    scene.truth = data<Box>(truth);
    scene.splits = data<int64_t>(splits);
    scene.rows = static_cast<int32_t>(truth.size(0));
    scene.images = static_cast<int32_t>(splits.size(0) - 1);
    scene.offers = static_cast<uint64_t*>(matched.mutable_data_ptr());
  }

  int64_t pairs() const { return matched.numel(); }  // of an image and a prior

  // Clears the offers, makes new ones by a block of `kernel` for every row, and turns them into the result.
  template <typename Kernel, typename... Arguments>
  Tensor run(Kernel kernel, int threads, float positive_iou, Arguments... arguments) const {
    if (pairs() == 0) return matched;
    stream.launch(clear_offers, blocks_for(pairs(), 4 * kMatchThreads), kMatchThreads, 0, scene);
    if (scene.rows > 0) stream.launch(kernel, scene.rows, threads, 0, scene, arguments...);
    stream.launch(finish_offers, blocks_for(pairs(), 4 * kMatchThreads), kMatchThreads, 0, scene, positive_iou);
    return matched;
  }

  Stream stream;
  Tensor cell;  // on the GPU, kept while the kernels are launched
  Grid grid;
  Tensor matched;
  Scene scene{};
};

Tensor max_iou(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
               const Tensor& strides, const Tensor& ranges, int64_t priors, double positive_iou, double negative_iou,
               bool low_quality) {
  const Match match(truth, splits, sizes, cell, strides, ranges, priors, false);
  const float above = std::nextafter(static_cast<float>(negative_iou), 0.0f);
  return match.run(offer_overlaps, kMatchThreads, static_cast<float>(positive_iou), above, low_quality);
}

Tensor fcos_targets(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
                    const Tensor& strides, const Tensor& ranges, int64_t priors, double radius) {
  STD_TORCH_CHECK(ranges.size(0) > 0, "FCOS's targets need a tiling with ranges of distances, got anchors");
  const Match match(truth, splits, sizes, cell, strides, ranges, priors, true);
  return match.run(offer_points, kMatchThreads, 0.0f, static_cast<float>(radius));
}

Tensor atss(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
            const Tensor& ranges, int64_t priors, int64_t top_k) {
  const Match match(truth, splits, sizes, cell, strides, ranges, priors, false);
  STD_TORCH_CHECK(top_k >= 1 && top_k < kMostPriors, "top_k must be at least 1, got ", top_k);
  // more than all cells of the largest level is no more
  int64_t most = 1;
  for (const Level& level : match.grid.levels) most = std::max(most, level.height * level.width);
  const int32_t count = static_cast<int32_t>(std::min(top_k, most));
  const Buffer<int32_t> nearest(truth, truth.size(0) * match.grid.count() * count);
  return match.run(offer_nearest, kLevelThreads, 0.0f, count, nearest.get());
}

Tensor simota(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
              const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
              const Tensor& ranges, int64_t classes, int64_t top_k, double radius) {
  const Match match(truth, splits, sizes, cell, strides, ranges, boxes.size(1), false);
  STD_TORCH_CHECK(top_k >= 1 && top_k < kMostPriors, "top_k must be at least 1, got ", top_k);
  if (match.pairs() == 0) return match.matched;
  const Buffer<uint8_t> known(boxes, match.pairs());
  const Buffer<float> sum(boxes, match.pairs());
  const Buffer<int32_t> takers(boxes, match.pairs()), chosen(boxes, match.scene.rows * top_k);
  Costs costs{};
  costs.scene = match.scene;
  const std::vector<Scores> scores = read_scores(logits, match.grid, classes);
  std::copy(scores.begin(), scores.end(), costs.scores);
  costs.boxes = data<Box>(boxes);
  costs.label = data<int64_t>(labels);
  costs.classes = static_cast<int32_t>(classes);
  costs.top_k = static_cast<int32_t>(top_k);
  costs.radius = static_cast<float>(radius);
  costs.known = known.get();
  costs.sum = sum.get();
  costs.takers = takers.get();
  costs.chosen = chosen.get();
  match.stream.launch(clear_costs, blocks_for(match.pairs(), 4 * kCostThreads), kCostThreads, 0, costs);
  if (match.scene.rows == 0) return match.matched;
  match.stream.launch(mark_candidates, match.scene.rows, kCostThreads, 0, costs);
  match.stream.launch(sum_classes, blocks_for(match.pairs() * kLanes, kCostThreads), kCostThreads, 0, costs);
  match.stream.launch(choose_lowest, match.scene.rows, kCostThreads, 0, costs);
  const int64_t choices = match.scene.rows * top_k;
  match.stream.launch(settle_contested, blocks_for(choices, kMatchThreads), kMatchThreads, 0, costs);
  return match.matched;
}

}  // namespace
}  // namespace detsearch::gpu

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) {
  m.impl("max_iou", TORCH_BOX(&detsearch::gpu::max_iou));
  m.impl("fcos_targets", TORCH_BOX(&detsearch::gpu::fcos_targets));
  m.impl("atss", TORCH_BOX(&detsearch::gpu::atss));
  m.impl("simota", TORCH_BOX(&detsearch::gpu::simota));
}
