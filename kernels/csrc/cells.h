// Priors that tile the image: every cell of a level holds the same boxes. What the CPU and CUDA assigners know of them,
// rounded alike by both, and as detsearch_cli/slots/priors/base.py rounds where it writes the boxes out.

#pragma once

#include "assign.h"

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
  int64_t of_image, of_row, of_column, of_shape, of_class;

  DETSEARCH_INLINE const float* at(int64_t image, int64_t row, int64_t column, int64_t shape) const {
    return first + image * of_image + row * of_row + column * of_column + shape * of_shape;
  }
};

// Cells begin..end - 1 along an axis.
struct Span {
  int64_t begin, end;
};

template <typename Index>
DETSEARCH_INLINE float centre(Index cell, float stride) { return (static_cast<float>(cell) + 0.5f) * stride; }

DETSEARCH_INLINE double between(double x, double low, double high) { return x < low ? low : (x > high ? high : x); }

// The cells along an axis whose centre lies in (low, high), and up to one more on each side: rounding must not lose
// one. None where a limit is not a number.
DETSEARCH_INLINE Span cells_between(float low, float high, float stride, int64_t cells) {
  const double scale = 1.0 / stride;
  const double begin = std::floor(low * scale - 0.5), end = std::ceil(high * scale - 0.5) + 1.0;
  const double count = static_cast<double>(cells);
  if (!(begin < end)) return {0, 0};
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
  return least(one, other) > min_iou * most(one, other) * 0.999f;
}

// Whether a point at distances `before`, `after` across and `above`, `below` from the sides is a candidate: strictly
// inside, and the largest distance in the level's range.
DETSEARCH_INLINE bool point_fits(const Level& level, float before, float after, float above, float below) {
  const float nearest = least(least(before, after), least(above, below));
  const float farthest = most(most(before, after), most(above, below));
  return nearest > 0.0f && farthest > level.low && farthest <= level.high;
}

// The level of points meant for a box: the one whose range holds half its long side.
DETSEARCH_INLINE int64_t level_for(const Level* levels, int64_t count, const Box& truth) {
  const float half = most(truth.x2 - truth.x1, truth.y2 - truth.y1) / 2;
  int64_t best = 0;
  while (best + 1 < count && half > levels[best].high) ++best;
  return best;
}

}  // namespace detsearch
