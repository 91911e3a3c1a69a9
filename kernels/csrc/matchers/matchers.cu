// Max-IoU, ATSS and FCOS assignment of a whole batch on a GPU: the kernels of matchers_gpu.h, launched.

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "matchers/batch_gpu.h"
#include "matchers/matchers_gpu.h"

namespace detsearch::gpu {
namespace {

// Clears the offers, makes new ones by a block of `kernel` for every ground truth, and turns them into the result.
template <typename Kernel, typename... Arguments>
Tensor run(const GpuBatch& batch, Kernel kernel, int threads, float positive_iou, Arguments... arguments) {
  if (batch.pairs() == 0) return batch.matched;
  const int64_t blocks = blocks_for(batch.pairs(), 4 * kMatchThreads);
  batch.stream.launch(clear_offers, blocks, kMatchThreads, 0, batch.args);
  // a launch of 0 blocks is an error in CUDA
  if (batch.args.rows > 0) batch.stream.launch(kernel, batch.args.rows, threads, 0, batch.args, arguments...);
  batch.stream.launch(finish_offers, blocks, kMatchThreads, 0, batch.args, positive_iou);
  return batch.matched;
}

Tensor max_iou(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
               const Tensor& strides, const Tensor& ranges, int64_t priors, double positive_iou, double negative_iou,
               bool low_quality) {
  const GpuBatch batch(truth, splits, sizes, cell, strides, ranges, priors, false);
  // the kernel takes what is above a limit, and the threshold itself belongs to what is not background
  const float above = std::nextafter(static_cast<float>(negative_iou), 0.0f);
  return run(batch, offer_overlaps, kMatchThreads, static_cast<float>(positive_iou), above, low_quality);
}

Tensor fcos_targets(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
                    const Tensor& strides, const Tensor& ranges, int64_t priors, double radius) {
  STD_TORCH_CHECK(ranges.size(0) > 0, "FCOS's targets need a tiling with ranges of distances, got anchors");
  const GpuBatch batch(truth, splits, sizes, cell, strides, ranges, priors, true);
  return run(batch, offer_points, kMatchThreads, 0.0f, static_cast<float>(radius));
}

Tensor atss(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
            const Tensor& ranges, int64_t priors, int64_t top_k) {
  const GpuBatch batch(truth, splits, sizes, cell, strides, ranges, priors, false);
  STD_TORCH_CHECK(top_k >= 1 && top_k < kMaxPriors, "top_k must be at least 1, got ", top_k);
  // more than all cells of the largest level is no more
  int64_t most = 1;
  for (const Level& level : batch.grid.levels) most = std::max(most, level.height * level.width);
  const int32_t count = static_cast<int32_t>(std::min(top_k, most));
  const Buffer<int32_t> nearest(truth, truth.size(0) * batch.grid.count() * count);
  return run(batch, offer_nearest, kLevelThreads, 0.0f, count, nearest.get());
}

}  // namespace
}  // namespace detsearch::gpu

STABLE_TORCH_LIBRARY_IMPL(detsearch, CUDA, m) {
  m.impl("max_iou", TORCH_BOX(&detsearch::gpu::max_iou));
  m.impl("fcos_targets", TORCH_BOX(&detsearch::gpu::fcos_targets));
  m.impl("atss", TORCH_BOX(&detsearch::gpu::atss));
}
