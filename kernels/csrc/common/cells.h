// Priors that tile the image: every cell of a level holds the same boxes. What the CPU and CUDA assigners know of them,
// rounded alike by both, and as detsearch_cli/slots/priors/base.py rounds where it writes the boxes out.

#pragma once

#include "common/box.h"

namespace detsearch {

// A pyramid level. shapes: priors of a cell; first: the level's first prior. Priors of a level lie row-major, the
// priors of a cell together.
struct Level {
  int64_t height, width, shapes;  // cells down and across, priors of a cell
  int64_t first;
  float stride;     // px; a cell's centre is at (column + .5, row + .5) strides
  const Box* cell;  // boxes of a cell's priors, relative to its centre
  float low, high;  // (low, high] of the largest distance to a side, points only

  DETSEARCH_INLINE int64_t count() const { return height * width * shapes; }
  DETSEARCH_INLINE int64_t prior(int64_t row, int64_t column, int64_t shape) const {
    return first + (row * width + column) * shapes + shape;
  }
};

// Where the class scores of a level lie: of its first image, cell, prior and class, and the steps in elements.
struct Scores {
  const float* first;
  int64_t image_stride, row_stride, column_stride, shape_stride, class_stride;

  DETSEARCH_INLINE const float* at(int64_t image, int64_t row, int64_t column, int64_t shape) const {
    return first + image * image_stride + row * row_stride + column * column_stride + shape * shape_stride;
  }
};

// Cells begin..end - 1 along an axis.
struct Span {
  int64_t begin, end;
};

// In this order PyTorch's priors round; cell * stride + stride / 2 differs where the stride is no power of 2.
template <typename Index>
DETSEARCH_INLINE float centre(Index cell, float stride) {
  return (static_cast<float>(cell) + 0.5f) * stride;
}

DETSEARCH_INLINE double between(double x, double low, double high) { return x < low ? low : (x > high ? high : x); }

// The cells along an axis whose centre lies in (low, high), and up to one more on each side: rounding must not lose
// one. None where a limit is not a number.
DETSEARCH_INLINE Span cells_between(float low, float high, float stride, int64_t cells) {
  const double scale = 1.0 / stride;  // float64, so that one cell more on each side covers all rounding
  const double begin = std::floor(low * scale - 0.5), end = std::ceil(high * scale - 0.5) + 1.0;
  const double count = static_cast<double>(cells);
  if (!(begin < end)) return {0, 0};  // not begin >= end, which is false for a NaN
  // limited first: a conversion to int64 of more than it holds is undefined
  return {static_cast<int64_t>(between(begin, 0.0, count)), static_cast<int64_t>(between(end, 0.0, count))};
}

// Columns and rows whose prior of this shape may touch the box.
DETSEARCH_INLINE Span columns_touching(const Level& level, const Box& cell, const Box& truth) {
  return cells_between(truth.x1 - cell.x2, truth.x2 - cell.x1, level.stride, level.width);
}

DETSEARCH_INLINE Span rows_touching(const Level& level, const Box& cell, const Box& truth) {
  return cells_between(truth.y1 - cell.y2, truth.y2 - cell.y1, level.stride, level.height);
}

// False where two boxes of these areas cannot have an IoU above min_iou, wherever they lie.
DETSEARCH_INLINE bool areas_allow(float one, float other, float min_iou) {
  // an IoU is at most the smaller area over the larger; 0.999 leaves room for rounding
  return min_of(one, other) > min_iou * max_of(one, other) * 0.999f;
}

// Whether a point at distances `before`, `after` across and `above`, `below` from the sides is a candidate: strictly
// inside, and the largest distance in the level's range.
DETSEARCH_INLINE bool point_fits(const Level& level, float before, float after, float above, float below) {
  const float nearest = min_of(min_of(before, after), min_of(above, below));
  const float farthest = max_of(max_of(before, after), max_of(above, below));
  // open below and closed above, so that exactly one level takes a point at a limit
  return nearest > 0.0f && farthest > level.low && farthest <= level.high;
}

// The level of points meant for a box: the one whose range holds half its long side.
DETSEARCH_INLINE int64_t level_for(const Level* levels, int64_t count, const Box& truth) {
  const float half = max_of(truth.x2 - truth.x1, truth.y2 - truth.y1) / 2;
  int64_t best = 0;
  // the last level takes all that is larger, whatever its limit
  while (best + 1 < count && half > levels[best].high) ++best;
  return best;
}

}  // namespace detsearch
