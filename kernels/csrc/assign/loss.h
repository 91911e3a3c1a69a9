// The loss by which HPS-Det's Algorithm 2 ranks candidates, and the bin of a ground truth: the same for CPU and CUDA.

#pragma once

#include "common/box.h"

namespace detsearch {

// The bin of a box's height / width: the number of edges below it. edges (bins - 1), ascending.
DETSEARCH_INLINE int64_t bin_of(const Box& truth, const float* edges, int64_t bins) {
  const float aspect = (truth.y2 - truth.y1) / (truth.x2 - truth.x1);
  // all edges, not the first that is higher: without a branch, and a NaN (an empty box) falls into bin 0
  int64_t bin = 0;
  for (int64_t i = 0; i + 1 < bins; ++i) bin += aspect > edges[i];
  return bin;
}

constexpr float kFocalAlpha = 0.25f;  // and gamma 2, the squares below
constexpr float kMinIou = 1e-7f;

// p^2 * -ln(1 - p) with p = sigmoid(x): the unweighted focal loss of a target 0. The exponent is never above 0, so
// nothing overflows. That of a target 1 is the same at -x.
DETSEARCH_INLINE float negative_focal(float x) {
  const float e = exponential(x < 0.0f ? x : -x);
  const float p = (x < 0.0f ? e : 1.0f) / (1.0f + e);
  return p * p * (positive(x) + logarithm_above_1(e));
}

// The part of a candidate's loss that needs no other class than its own; the loss is never lower.
DETSEARCH_INLINE float bound_of(float own, float overlap, float alpha) {
  // an overlap of 1 may have been rounded up: no loss is below 0
  return kFocalAlpha * negative_focal(-own) + alpha * positive(-logarithm(max_of(overlap, kMinIou)));
}

// The loss, from the bound and the sum of negative_focal over all classes.
DETSEARCH_INLINE float loss_of(float bound, float own, float sum) {
  // rounding may leave less than nothing of the sum; then the loss would fall below its bound
  return bound + (1.0f - kFocalAlpha) * positive(sum - negative_focal(own));
}

}  // namespace detsearch
