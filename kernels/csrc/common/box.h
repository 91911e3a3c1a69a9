// A box, its IoU with another, and the order in which class scores are summed: the same for CPU and CUDA.

#pragma once

#include "common/numeric.h"

namespace detsearch {

struct Box {
  float x1, y1, x2, y2;
};

// A NaN gives 0, so that a diverged prediction overlaps nothing. The measures in boxes/boxes.h keep it instead.
DETSEARCH_INLINE float positive(float x) { return x > 0.0f ? x : 0.0f; }

// Not fminf and fmaxf: where either is NaN the result is b on every device, and x86 has one instruction for that.
DETSEARCH_INLINE float min_of(float a, float b) { return a < b ? a : b; }
DETSEARCH_INLINE float max_of(float a, float b) { return a > b ? a : b; }

DETSEARCH_INLINE float area(const Box& box) { return positive(box.x2 - box.x1) * positive(box.y2 - box.y1); }

constexpr float kTiny = 1.17549435e-38f;  // the smallest normal float: two empty boxes must not divide by 0

// IoU from the shared area and both areas; 0 where both are empty. a + b comes first: the PyTorch assigners round so.
DETSEARCH_INLINE float ratio(float shared, float a, float b) { return shared / max_of(a + b - shared, kTiny); }

DETSEARCH_INLINE float iou(const Box& a, const Box& b) {
  const float w = positive(min_of(a.x2, b.x2) - max_of(a.x1, b.x1));
  const float h = positive(min_of(a.y2, b.y2) - max_of(a.y1, b.y1));
  return ratio(w * h, area(a), area(b));
}

constexpr int kLanes = 16;  // classes are summed in 16 partial sums on every machine: the sum must not depend on it

// Adds the partial sums, and uses them up. In halves, because sixteen threads of a GPU add theirs in that order.
DETSEARCH_INLINE float sum_of_lanes(float* lane) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

}  // namespace detsearch
