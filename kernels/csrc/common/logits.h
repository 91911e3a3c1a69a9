// Where the logits of a detector's head lie in memory; the same for CPU and CUDA.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <vector>

#include "common/numeric.h"

namespace detsearch {

// Logits of one level. In memory they are (images, cells, shapes, classes) or (images, shapes, classes, cells).
struct LogitLayout {
  int64_t images, cells, shapes, classes;
  int64_t first;  // of its priors among those of all levels
  bool classes_last;

  DETSEARCH_INLINE int64_t priors() const { return cells * shapes; }
  DETSEARCH_INLINE int64_t per_image() const { return cells * shapes * classes; }
  DETSEARCH_INLINE int64_t count() const { return images * per_image(); }
  DETSEARCH_INLINE int64_t class_stride() const { return classes_last ? 1 : cells; }

  // Offset in its image of a prior's first class.
  DETSEARCH_INLINE int64_t offset(int64_t prior) const {
    return classes_last ? prior * classes : prior % shapes * classes * cells + prior / shapes;
  }

  // Offset in the level of the first class of a row, image x all_priors + prior; -1 where the level has no such row.
  DETSEARCH_INLINE int64_t find(int64_t row, int64_t all_priors) const {
    if (row < 0 || count() == 0) return -1;
    const int64_t image = row / all_priors, prior = row % all_priors - first;
    return image < images && prior >= 0 && prior < priors() ? image * per_image() + offset(prior) : -1;
  }
};

// Whether the elements lie packed when the dimensions are taken in this order.
template <size_t N>
bool packed(const torch::stable::Tensor& tensor, const std::array<int64_t, N>& order) {
  if (tensor.numel() == 0) return true;  // its strides mean nothing
  int64_t step = 1;
  for (size_t i = N; i-- > 0; step *= tensor.size(order[i])) {
    // torch lets the stride of a dimension of one element be anything
    if (tensor.size(order[i]) != 1 && tensor.stride(order[i]) != step) return false;
  }
  return true;
}

// logits (B, A, C) or (B, H, W, S, C); the latter may lie in memory as (B, S, C, H, W).
inline LogitLayout read_layout(const torch::stable::Tensor& logits, int64_t first) {
  const int64_t last = logits.dim() - 1;
  STD_TORCH_CHECK(last == 2 || last == 4, "logits must be (B, A, C) or (B, H, W, S, C), got ", last + 1, " dimensions");
  LogitLayout layout{logits.size(0), logits.size(1), 1, logits.size(last), first, true};
  bool fits = true;
  if (last == 4) {
    layout.cells *= logits.size(2);
    layout.shapes = logits.size(3);
    layout.classes_last = packed<5>(logits, {0, 1, 2, 3, 4});
    fits = layout.classes_last || packed<5>(logits, {0, 3, 4, 1, 2});
  } else {
    fits = packed<3>(logits, {0, 1, 2});
  }
  STD_TORCH_CHECK(fits, "logits must lie packed in memory, as (B, A, C), (B, H, W, S, C) or (B, S, C, H, W)");
  return layout;
}

// Of every level, at least one; their images and classes are the same.
inline std::vector<LogitLayout> read_layouts(const std::vector<torch::stable::Tensor>& levels) {
  STD_TORCH_CHECK(!levels.empty(), "logits must have at least one level, got none");
  std::vector<LogitLayout> layouts;
  for (const torch::stable::Tensor& level : levels) {
    const int64_t first = layouts.empty() ? 0 : layouts.back().first + layouts.back().priors();
    layouts.push_back(read_layout(level, first));
    const LogitLayout &layout = layouts.back(), &other = layouts.front();
    STD_TORCH_CHECK(layout.images == other.images && layout.classes == other.classes,
                    "levels must have the same images and classes, got ", layout.images, " and ", layout.classes,
                    " after ", other.images, " and ", other.classes);
  }
  return layouts;
}

// Priors of all levels.
inline int64_t priors_of(const std::vector<LogitLayout>& layouts) {
  return layouts.back().first + layouts.back().priors();
}

}  // namespace detsearch
