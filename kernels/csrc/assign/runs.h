// The candidates of a ground truth as runs: in a row of cells, the priors of one shape that are candidates lie side by
// side, so that their first and last say all. The result is that of visit_anchors (common/grid.h) and point_fits,
// without looking at every cell.

#pragma once

#include <algorithm>
#include <cmath>

#include "common/grid.h"

namespace detsearch {

// A cell index from a number that may be anything.
inline int64_t whole_cell(double x, Span in) {
  const double begin = static_cast<double>(in.begin), end = static_cast<double>(in.end);
  return static_cast<int64_t>(x > begin ? (x < end ? x : end) : begin);
}

// The first cell of `in` for which `holds` is true; it must be true for all that follow. in.end without one. The search
// begins near `position` px, computed; the exact comparison then decides, so that rounding of the position does not.
template <typename Holds>
int64_t first_cell(float position, float stride, Span in, const Holds& holds) {
  int64_t cell = whole_cell(std::floor(static_cast<double>(position) / stride + 0.5), in);
  while (cell > in.begin && holds(cell - 1)) --cell;
  while (cell < in.end && !holds(cell)) ++cell;
  return cell;
}

// Cells along an axis whose centre lies strictly between two sides and at most `reach` from either.
inline Span cells_inside(float low, float high, float reach, float stride, int64_t cells) {
  const int64_t begin = first_cell(max_of(low, high - reach), stride, {0, cells}, [&](int64_t i) {
    const float x = centre(i, stride);
    return x - low > 0.0f && high - x <= reach;
  });
  const int64_t end = first_cell(min_of(high, low + reach), stride, {begin, cells}, [&](int64_t i) {
    const float x = centre(i, stride);
    return !(high - x > 0.0f && x - low <= reach);
  });
  return {begin, end};
}

// Calls visit(first prior, step, count) for the points of one level that are candidates of the box, as point_fits says.
template <typename Visit>
void visit_point_runs(const Level& level, const Box& truth, const Visit& visit) {
  const Span rows = cells_inside(truth.y1, truth.y2, level.high, level.stride, level.height);
  if (rows.begin >= rows.end) return;
  const Span columns = cells_inside(truth.x1, truth.x2, level.high, level.stride, level.width);
  if (columns.begin >= columns.end) return;
  // farther than `low` from the right side up to `left`, and from the left side from `right` on
  const int64_t left = first_cell(truth.x2 - level.low, level.stride, columns,
                                  [&](int64_t i) { return !(truth.x2 - centre(i, level.stride) > level.low); });
  const int64_t right = first_cell(truth.x1 + level.low, level.stride, columns,
                                   [&](int64_t i) { return centre(i, level.stride) - truth.x1 > level.low; });
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float y = centre(row, level.stride);
    const bool far = y - truth.y1 > level.low || truth.y2 - y > level.low || left >= right;
    const auto run = [&](int64_t begin, int64_t end) {
      if (begin < end) visit(level.prior(row, begin, 0), int64_t{1}, end - begin);
    };
    run(columns.begin, far ? columns.end : left);
    if (!far) run(right, columns.end);
  }
}

// A prior's shape and a box: what decides along each axis. All in px.
struct Fit {
  Box cell, truth;
  float truth_area;  // area of the box
  float width;       // the most they share across
  float needed;      // area; an IoU of min_iou needs `needed` / shared height across
  float error;       // what rounding may move a side by
};

inline Fit fit_of(const Level& level, const Box& cell, const Box& truth, float min_iou) {
  const float truth_area = area(truth), extent = level.stride * static_cast<float>(level.width + level.height);
  const auto reach = [](const Box& box) {
    return max_of(max_of(std::fabs(box.x1), std::fabs(box.x2)), max_of(std::fabs(box.y1), std::fabs(box.y2)));
  };
  return {cell, truth, truth_area, min_of(cell.x2 - cell.x1, truth.x2 - truth.x1),
          min_iou / (1.0f + min_iou) * (area(cell) + truth_area),
          // room for dozens of roundings, each at most 6e-8 of numbers as large as the image
          4e-6f * (extent + reach(truth) + reach(cell))};
}

inline float overlap_at(const Level& level, const Fit& fit, int64_t row, int64_t column) {
  const float x = centre(column, level.stride), y = centre(row, level.stride);
  const float x1 = x + fit.cell.x1, x2 = x + fit.cell.x2, y1 = y + fit.cell.y1, y2 = y + fit.cell.y2;
  const float across = positive(min_of(x2, fit.truth.x2) - max_of(x1, fit.truth.x1));
  const float down = positive(min_of(y2, fit.truth.y2) - max_of(y1, fit.truth.y1));
  return ratio(across * down, positive(x2 - x1) * positive(y2 - y1), fit.truth_area);
}

// For some rows of cells, the columns begin..end - 1 whose priors exceed an IoU; `sure` is 0 where rounding may change
// them.
struct Ends {
  static constexpr int32_t kRows = 64;
  int32_t begin[kRows], end[kRows], sure[kRows];
};

// A prior is a candidate where it shares more than `needed` across with the box: between two centres of cells.
inline void find_ends(const Level& level, const Fit& fit, Span columns, int32_t top, int32_t rows, Ends& ends) {
  const float stride = level.stride, scale = 1.0f / stride, y1 = fit.cell.y1, y2 = fit.cell.y2;
  const float first = static_cast<float>(columns.begin), last = static_cast<float>(columns.end);
  const float left = (fit.truth.x1 - fit.cell.x2) * scale - 0.5f, right = (fit.truth.x2 - fit.cell.x1) * scale - 0.5f;
  const Fit by = fit;
  // no branches, and all numbers of 32 bits: the compiler makes vectors of it
  for (int32_t i = 0; i < rows; ++i) {
    const float y = centre(top + i, stride);
    const float down = min_of(y + y2, by.truth.y2) - max_of(y + y1, by.truth.y1), shares = 1.0f / max_of(down, kTiny);
    const float needed = by.needed * shares, error = by.error * (2.0f + needed * shares) + 1e-5f * needed;
    const float low = left + needed * scale, high = right - needed * scale, unsure = error * scale;
    // limited before the conversion to int32: `low` is infinite where hardly anything is shared
    const float begin = max_of(min_of(std::ceil(low), last), first);
    const float end = max_of(min_of(std::floor(high) + 1.0f, last), first);
    const bool none = !(down > 0.0f) | (needed > by.width + error);
    const float nearest = min_of(std::fabs(low - std::floor(low + 0.5f)), std::fabs(high - std::floor(high + 0.5f)));
    ends.begin[i] = static_cast<int32_t>(begin);
    ends.end[i] = static_cast<int32_t>(none ? begin : end);
    ends.sure[i] = none | !((nearest < unsure) | (needed > by.width - error) | (unsure > 0.4f));
  }
}

// Calls visit(first prior, step, count) for the priors of one shape on one level whose IoU with the box exceeds
// min_iou. A row where rounding could decide is checked cell by cell with the arithmetic of the reference.
template <typename Visit>
void visit_anchor_runs(const Level& level, int64_t shape, const Box& truth, float min_iou, const Visit& visit) {
  const Box& cell = level.cell[shape];
  if (!areas_allow(area(cell), area(truth), min_iou)) return;
  const Span columns = columns_touching(level, cell, truth), rows = rows_touching(level, cell, truth);
  if (columns.begin >= columns.end) return;
  const Fit fit = fit_of(level, cell, truth, min_iou);
  Ends ends;
  for (int64_t top = rows.begin; top < rows.end; top += Ends::kRows) {
    const int32_t count = static_cast<int32_t>(std::min<int64_t>(Ends::kRows, rows.end - top));
    find_ends(level, fit, columns, static_cast<int32_t>(top), count, ends);
    for (int32_t i = 0; i < count; ++i) {
      const auto run = [&](int64_t begin, int64_t end) {
        if (begin < end) visit(level.prior(top + i, begin, shape), level.shapes, end - begin);
      };
      if (ends.sure[i]) {
        run(ends.begin[i], ends.end[i]);
        continue;
      }
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        if (overlap_at(level, fit, top + i, column) > min_iou) run(column, column + 1);
      }
    }
  }
}

// Cells along an axis among which is the one where two intervals share the most: prior (from, to) about the centre,
// and box (low, high).
inline Span cells_of_most(float from, float to, float low, float high, float stride, int64_t cells) {
  const float one = low - from, other = high - to;
  const Span span = cells_between(min_of(one, other), max_of(one, other), stride, cells);
  // at least one cell: a box outside the image shares most with the cell at the edge
  const int64_t begin = std::min(span.begin, cells - 1);
  return {begin, std::max(span.end, begin + 1)};
}

// The highest IoU of one shape's priors on one level with the box; something lower where it is not above `known`.
inline float highest_iou(const Level& level, int64_t shape, const Box& truth, float min_iou, float known) {
  const Box& cell = level.cell[shape];
  const float own = area(cell), truth_area = area(truth);
  if (level.height * level.width == 0 || !areas_allow(own, truth_area, min_iou)) return -1.0f;
  const float shared = min_of(cell.x2 - cell.x1, truth.x2 - truth.x1) * min_of(cell.y2 - cell.y1, truth.y2 - truth.y1);
  // the IoU if both had the same middle: no position has more. 1.001 leaves room for rounding
  if (ratio(shared, own, truth_area) * 1.001f < known) return -1.0f;
  const Fit fit = fit_of(level, cell, truth, min_iou);
  const Span columns = cells_of_most(cell.x1, cell.x2, truth.x1, truth.x2, level.stride, level.width);
  const Span rows = cells_of_most(cell.y1, cell.y2, truth.y1, truth.y2, level.stride, level.height);
  float highest = -1.0f;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      highest = max_of(highest, overlap_at(level, fit, row, column));
    }
  }
  return highest > min_iou ? highest : -1.0f;
}

// The level that fits a box best: the one meant for it, or that of the anchor with the highest IoU, of equal ones the
// first; -1 where anchors have no candidate.
inline int64_t best_level(const Grid& grid, const Box& truth, float min_iou) {
  if (grid.points) return level_for(grid.levels.data(), grid.count(), truth);
  int64_t best = -1;
  float highest = -1.0f;
  for (int64_t i = 0; i < grid.count(); ++i) {
    for (int64_t shape = 0; shape < grid.levels[i].shapes; ++shape) {
      const float overlap = highest_iou(grid.levels[i], shape, truth, min_iou, highest);
      if (overlap > highest) {
        highest = overlap;
        best = i;
      }
    }
  }
  return best;
}

// Calls visit(first prior, step, count) for all candidates of a box, level after level.
template <typename Visit>
void visit_runs(const Grid& grid, const Box& truth, float min_iou, const Visit& visit) {
  for (const Level& level : grid.levels) {
    if (grid.points) visit_point_runs(level, truth, visit);
    for (int64_t shape = 0; !grid.points && shape < level.shapes; ++shape) {
      visit_anchor_runs(level, shape, truth, min_iou, visit);
    }
  }
}

}  // namespace detsearch
