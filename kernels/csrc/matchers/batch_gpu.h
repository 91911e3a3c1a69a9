// The operands of a call on a GPU, read and put into the arguments of kernels. The host waits for nothing: what it
// would have to read first (labels, splits) is not checked here.

#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "common/grid.h"
#include "matchers/offers_gpu.h"

namespace detsearch::gpu {

inline int64_t blocks_for(int64_t threads, int64_t of_block) {
  return std::max<int64_t>(1, (threads + of_block - 1) / of_block);
}

// A call's operands and result. points: candidates are found by distances to the sides, not by IoU.
struct GpuBatch {
  GpuBatch(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cells, const Tensor& strides,
           const Tensor& ranges, int64_t priors, bool points)
      : stream(truth),
        cell(torch::stable::to(cells, truth.device(), true)),  // true: the host does not wait for the copy
        grid(read_grid(sizes, cell, strides, ranges, priors)),
        matched(torch::stable::new_empty(splits, {splits.size(0) - 1, priors})) {
    STD_TORCH_CHECK(grid.count() <= kMaxLevels, "at most ", kMaxLevels, " levels on a GPU, got ", grid.count());
    STD_TORCH_CHECK(priors < kMaxPriors, "at most ", kMaxPriors, " priors on a GPU, got ", priors);
    STD_TORCH_CHECK(truth.size(0) < kMaxPriors, "too many ground truths for a GPU: ", truth.size(0));
    args.grid.count = static_cast<int32_t>(grid.count());
    args.grid.shapes = static_cast<int32_t>(cell.size(1));
    args.grid.priors = static_cast<int32_t>(priors);
    args.grid.points = points;
    std::copy(grid.levels.begin(), grid.levels.end(), args.grid.levels);
    args.truth = data<Box>(truth);
    args.splits = data<int64_t>(splits);
    args.rows = static_cast<int32_t>(truth.size(0));
    args.images = static_cast<int32_t>(splits.size(0) - 1);
    args.offers = static_cast<uint64_t*>(matched.mutable_data_ptr());
  }

  int64_t pairs() const { return matched.numel(); }  // of an image and a prior

  Stream stream;
  Tensor cell;  // on the GPU, kept while the kernels are launched
  Grid grid;
  Tensor matched;
  MatchArguments args{};
};

}  // namespace detsearch::gpu
