// What the CPU and CUDA assigners compute alike: overlaps, the bin of a ground truth, the loss of a candidate.

#pragma once

#include "numeric.h"

namespace detsearch {

struct Box {
  float x1, y1, x2, y2;
};

DETSEARCH_INLINE float positive(float x) { return x > 0.0f ? x : 0.0f; }
DETSEARCH_INLINE float least(float a, float b) { return a < b ? a : b; }
DETSEARCH_INLINE float most(float a, float b) { return a > b ? a : b; }

DETSEARCH_INLINE float area(const Box& box) { return positive(box.x2 - box.x1) * positive(box.y2 - box.y1); }

constexpr float kTiny = 1.17549435e-38f;  // the smallest normal float: two empty boxes must not divide by 0

// IoU from what is shared and both areas; 0 where both are empty.
DETSEARCH_INLINE float ratio(float shared, float a, float b) { return shared / most(a + b - shared, kTiny); }

DETSEARCH_INLINE float iou(const Box& a, const Box& b) {
  const float w = positive(least(a.x2, b.x2) - most(a.x1, b.x1));
  const float h = positive(least(a.y2, b.y2) - most(a.y1, b.y1));
  return ratio(w * h, area(a), area(b));
}

// The bin of a box's height / width: the number of edges below it. edges (bins - 1), ascending.
DETSEARCH_INLINE int64_t bin_of(const Box& truth, const float* edges, int64_t bins) {
  const float aspect = (truth.y2 - truth.y1) / (truth.x2 - truth.x1);
  int64_t bin = 0;
  for (int64_t i = 0; i + 1 < bins; ++i) bin += aspect > edges[i];
  return bin;
}

constexpr float kFocalAlpha = 0.25f;  // and gamma 2, the squares below
constexpr float kMinIou = 1e-7f;
constexpr int kLanes = 16;  // classes are summed in 16 partial sums, whatever the machine's vectors

// p^2 * -ln(1 - p) with p = sigmoid(x): the unweighted focal loss of a target 0.
DETSEARCH_INLINE float away(float x) {
  const float e = exponential(x < 0.0f ? x : -x);
  const float p = (x < 0.0f ? e : 1.0f) / (1.0f + e);
  return p * p * (positive(x) + logarithm_above_1(e));
}

// The part of a candidate's loss that needs no other class than its own; the loss is never lower.
DETSEARCH_INLINE float bound_of(float own, float overlap, float alpha) {
  // an overlap of 1 may have been rounded up: no loss is below 0
  return kFocalAlpha * away(-own) + alpha * positive(-logarithm(most(overlap, kMinIou)));
}

// The loss, from the bound and the sum of `away` over all classes.
DETSEARCH_INLINE float loss_of(float bound, float own, float sum) {
  return bound + (1.0f - kFocalAlpha) * positive(sum - away(own));
}

DETSEARCH_INLINE float sum_of_lanes(float* lane) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

}  // namespace detsearch
