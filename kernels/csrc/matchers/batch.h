// What the CPU matchers share: the operands all of them take, and the loop over images.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "common/grid.h"
#include "matchers/matchers.h"

namespace detsearch {

struct Batch {
  Grid grid;
  const Box* truth;
  const int64_t* splits;
  int64_t images;
};

// truth (G, 4) float32, splits (B + 1,) int64 and the tiling (see read_grid), all contiguous and on the CPU.
inline Batch read_batch(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
                        const Tensor& strides, const Tensor& ranges, int64_t priors) {
  check_splits(splits, truth.size(0));
  return {read_grid(sizes, cell, strides, ranges, priors), data<Box>(truth), data<int64_t>(splits), splits.size(0) - 1};
}

// Calls each(image, its first ground truth, one past its last, matched (A,) filled with background) for every image.
template <typename Each>
Tensor for_images(const Batch& batch, const Tensor& splits, const Each& each) {
  const int64_t priors = batch.grid.priors;
  Tensor matched = torch::stable::new_empty(splits, {batch.images, priors});
  int64_t* out = static_cast<int64_t*>(matched.mutable_data_ptr());
  torch::stable::parallel_for(0, batch.images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      int64_t* own = out + image * priors;  // filled by the thread that goes on with it, while it lies in its cache
      std::fill(own, own + priors, kBackground);
      each(image, batch.splits[image], batch.splits[image + 1], own);
    }
  });
  return matched;
}

// Box of a prior given by its number.
inline Box box_of(const Grid& grid, int64_t prior) {
  const int64_t number = grid.level_of(prior);
  const PriorPosition position = position_of(grid.levels[number], number, prior);
  return box_at(grid.levels[number], position.row, position.column, position.shape);
}

}  // namespace detsearch
