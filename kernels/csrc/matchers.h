// What max-IoU, ATSS, FCOS and SimOTA assignment compute of a prior and a ground truth, rounded as the PyTorch
// assigners in detsearch_cli/slots/assigners round.

#pragma once

#include "cells.h"

namespace detsearch {

constexpr int64_t kBackground = -1, kIgnore = -2;

struct Spot {
  int64_t level, row, column, shape;
};

DETSEARCH_INLINE Spot spot_of(const Level& level, int64_t number, int64_t prior) {
  const int64_t cell = (prior - level.first) / level.shapes;
  return {number, cell / level.width, cell % level.width, (prior - level.first) % level.shapes};
}

DETSEARCH_INLINE Box box_at(const Level& level, int64_t row, int64_t column, int64_t shape) {
  const float x = centre(column, level.stride), y = centre(row, level.stride);
  const Box& cell = level.cell[shape];
  return {x + cell.x1, y + cell.y1, x + cell.x2, y + cell.y2};
}

DETSEARCH_INLINE bool finite(const Box& box) {
  // the difference of two infinities, or with what is no number, is no number
  return box.x1 - box.x1 == 0.0f && box.y1 - box.y1 == 0.0f && box.x2 - box.x2 == 0.0f && box.y2 - box.y2 == 0.0f;
}

DETSEARCH_INLINE float middle(float low, float high) { return (low + high) / 2; }

DETSEARCH_INLINE float magnitude(float x) { return x < 0.0f ? -x : x; }

// Distance from a point to the nearest side; below 0 outside.
DETSEARCH_INLINE float depth(const Box& box, float x, float y) {
  return least(least(x - box.x1, box.x2 - x), least(y - box.y1, box.y2 - y));
}

// Whether a point is within `reach` px of the box's middle along both axes.
DETSEARCH_INLINE bool central(const Box& box, float x, float y, float reach) {
  return magnitude(x - middle(box.x1, box.x2)) < reach && magnitude(y - middle(box.y1, box.y2)) < reach;
}

// Binary cross entropy of a class that is not there, from its logit: ln(1 + e^x).
DETSEARCH_INLINE float softplus(float x) { return positive(x) + logarithm(1.0f + exponential(x < 0.0f ? x : -x)); }

constexpr float kIouWeight = 3.0f, kLeastIou = 1e-8f;

// The part of SimOTA's cost that needs no other class than its own; the cost is never lower.
DETSEARCH_INLINE float cost_bound(float own, float overlap) {
  return softplus(-own) + kIouWeight * positive(-logarithm(overlap + kLeastIou));
}

// The cost, from the bound and the sum of softplus over all classes; infinite where it is no number.
DETSEARCH_INLINE float cost_of(float bound, float own, float sum) {
  const float cost = bound + positive(sum - softplus(own));
  return cost == cost && own == own && sum == sum ? cost : bits_to_float(0x7f800000u);
}

}  // namespace detsearch
