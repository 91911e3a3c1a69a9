// What max-IoU, ATSS, FCOS and SimOTA assignment compute of a prior and a ground truth, rounded as the PyTorch
// assigners in detsearch_cli/slots/assigners round.

#pragma once

#include "common/cells.h"

namespace detsearch {

constexpr int64_t kBackground = -1, kIgnore = -2;

// Where a prior lies: its level, cell and number in the cell.
struct PriorPosition {
  int64_t level, row, column, shape;
};

DETSEARCH_INLINE PriorPosition position_of(const Level& level, int64_t number, int64_t prior) {
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
  return min_of(min_of(x - box.x1, box.x2 - x), min_of(y - box.y1, box.y2 - y));
}

// Whether a point is within `reach` px of the box's middle along both axes.
DETSEARCH_INLINE bool central(const Box& box, float x, float y, float reach) {
  return magnitude(x - middle(box.x1, box.x2)) < reach && magnitude(y - middle(box.y1, box.y2)) < reach;
}

// The cells of a level whose centre is inside the box or within `reach` px of its middle along an axis, and some more.
DETSEARCH_INLINE Span columns_near(const Level& level, const Box& box, float reach) {
  const float x = middle(box.x1, box.x2);
  return cells_between(min_of(box.x1, x - reach), max_of(box.x2, x + reach), level.stride, level.width);
}

DETSEARCH_INLINE Span rows_near(const Level& level, const Box& box, float reach) {
  const float y = middle(box.y1, box.y2);
  return cells_between(min_of(box.y1, y - reach), max_of(box.y2, y + reach), level.stride, level.height);
}

constexpr uint32_t kInfinityBits = 0x7f800000u;

DETSEARCH_INLINE float squared(float x, float y) { return x * x + y * y; }

// How many cells down and across are looked at first for the `count` nearest to a point: enough unless the point lies
// outside the grid.
DETSEARCH_INLINE int64_t first_side(int64_t count) {
  int64_t root = 1;  // counted, not by sqrt, which may round below a square
  while (root * root < count) ++root;
  return 2 * root - 1;
}

// `side` cells around a coordinate, or all there are.
DETSEARCH_INLINE Span around(float at, float stride, int64_t side, int64_t cells) {
  const int64_t last = cells > side ? cells - side : 0;  // at an edge the span is moved, not cut: it keeps its cells
  // float64, limited before the conversion: a point may lie anywhere
  const double begin = std::floor(at / static_cast<double>(stride)) - static_cast<double>(side / 2);
  const int64_t first = static_cast<int64_t>(between(begin, 0.0, static_cast<double>(last)));
  return {first, first + side < cells ? first + side : cells};
}

// The least distance along an axis to a centre outside the span; infinite where the span is everything.
DETSEARCH_INLINE float outside(float at, float stride, const Span& span, int64_t cells) {
  float nearest = bits_to_float(kInfinityBits);
  if (span.begin > 0) nearest = magnitude(at - centre(span.begin - 1, stride));
  if (span.end < cells) nearest = min_of(nearest, magnitude(at - centre(span.end, stride)));
  return nearest;
}

// Whether no cell outside the spans is as near to (x, y) as one at this squared distance. A cell farther along one
// axis is never nearer in all, so what lies outside is at least as far as along the axis it is outside of.
DETSEARCH_INLINE bool surely_nearest(const Level& level, float x, float y, const Span& columns, const Span& rows,
                                     float farthest) {
  if (columns.end - columns.begin == level.width && rows.end - rows.begin == level.height) return true;
  const float beyond =
      min_of(outside(x, level.stride, columns, level.width), outside(y, level.stride, rows, level.height));
  // strictly: a cell outside that is as far may come first in the order of cells
  return squared(beyond, 0.0f) > farthest;
}

// Binary cross entropy of a class that is not there, from its logit: ln(1 + e^x). The exponent is never above 0, so
// nothing overflows.
DETSEARCH_INLINE float softplus(float x) { return positive(x) + logarithm(1.0f + exponential(x < 0.0f ? x : -x)); }

constexpr float kIouWeight = 3.0f, kLeastIou = 1e-8f;

// The part of SimOTA's cost that needs no other class than its own; the cost is never lower.
DETSEARCH_INLINE float cost_bound(float own, float overlap) {
  return softplus(-own) + kIouWeight * positive(-logarithm(overlap + kLeastIou));
}

// The cost, from the bound and the sum of softplus over all classes; infinite where it is no number.
DETSEARCH_INLINE float cost_of(float bound, float own, float sum) {
  const float cost = bound + positive(sum - softplus(own));
  // a NaN would compare false with everything and be chosen or not by the order of candidates
  return cost == cost && own == own && sum == sum ? cost : bits_to_float(kInfinityBits);
}

}  // namespace detsearch
