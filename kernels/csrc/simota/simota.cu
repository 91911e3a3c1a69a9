// SimOTA assignment of a whole batch on a GPU: the kernels of simota_gpu.h, launched.

#include <torch/csrc/stable/library.h>

#include <vector>

#include "matchers/batch_gpu.h"
#include "simota/simota_gpu.h"

namespace detsearch::gpu {
namespace {

Tensor simota(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
              const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
              const Tensor& ranges, int64_t classes, int64_t top_k, double radius) {
  const GpuBatch batch(truth, splits, sizes, cell, strides, ranges, boxes.size(1), false);
  STD_TORCH_CHECK(top_k >= 1 && top_k < kMaxPriors, "top_k must be at least 1, got ", top_k);
  if (batch.pairs() == 0) return batch.matched;  // a launch of 0 blocks is an error in CUDA
  const Buffer<uint8_t> is_candidate(boxes, batch.pairs());
  const Buffer<float> sum(boxes, batch.pairs());
  const Buffer<int32_t> num_choosers(boxes, batch.pairs()), chosen(boxes, batch.args.rows * top_k);
  SimotaArguments args{};
  args.match = batch.args;
  const std::vector<Scores> scores = read_scores(logits, batch.grid, classes);
  std::copy(scores.begin(), scores.end(), args.scores);
  args.boxes = data<Box>(boxes);
  args.label = data<int64_t>(labels);
  args.classes = static_cast<int32_t>(classes);
  args.top_k = static_cast<int32_t>(top_k);
  args.radius = static_cast<float>(radius);
  args.is_candidate = is_candidate.get();
  args.sum = sum.get();
  args.num_choosers = num_choosers.get();
  args.chosen = chosen.get();
  batch.stream.launch(clear_simota, blocks_for(batch.pairs(), 4 * kSimotaThreads), kSimotaThreads, 0, args);
  if (batch.args.rows == 0) return batch.matched;
  batch.stream.launch(mark_candidates, batch.args.rows, kSimotaThreads, 0, args);
  batch.stream.launch(sum_classes, blocks_for(batch.pairs() * kLanes, kSimotaThreads), kSimotaThreads, 0, args);
  batch.stream.launch(choose_lowest, batch.args.rows, kSimotaThreads, 0, args);
  const int64_t choices = batch.args.rows * top_k;
  batch.stream.launch(settle_contested, blocks_for(choices, kMatchThreads), kMatchThreads, 0, args);
  return batch.matched;
}

}  // namespace
}  // namespace detsearch::gpu

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) { m.impl("simota", TORCH_BOX(&detsearch::gpu::simota)); }
