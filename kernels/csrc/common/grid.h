// The candidates of a ground truth among priors that tile the image, found by looking at the cells near it; and the
// reading of detsearch_kernels.assign.Tiling. Every assigner on the CPU starts here. assign/runs.h finds the same
// candidates without looking at every cell, where their IoU is not needed.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "common/cells.h"

namespace detsearch {

using torch::stable::Tensor;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

struct Grid {
  std::vector<Level> levels;
  int64_t priors;  // of all levels
  bool points;     // candidates by distances, else by IoU

  int64_t count() const { return static_cast<int64_t>(levels.size()); }

  // Number of the level a prior belongs to.
  int64_t level_of(int64_t prior) const {
    // from the last: a level without cells begins where the next does, and owns nothing
    int64_t i = count() - 1;
    while (levels[i].first > prior) --i;
    return i;
  }
};

// Memory for one row of cells, kept between calls so that none is allocated for every ground truth and shape.
struct RowScratch {
  std::vector<float> width, shared, overlap;

  void resize(int64_t columns) {
    width.resize(columns);
    shared.resize(columns);
    overlap.resize(columns);
  }
};

// Calls visit(row, column, IoU) for the priors of one shape on one level whose IoU with the box exceeds min_iou >= 0;
// returns the highest IoU, or -1 where there is none. A whole row of cells shares its vertical part.
template <typename Visit>
float visit_anchors(const Level& level, int64_t shape, const Box& truth, float min_iou, RowScratch& scratch,
                    const Visit& visit) {
  const Box& cell = level.cell[shape];
  const float truth_area = area(truth);
  if (!areas_allow(area(cell), truth_area, min_iou)) return -1.0f;
  const Span columns = columns_touching(level, cell, truth), rows = rows_touching(level, cell, truth);
  const int64_t count = columns.end - columns.begin;
  if (count <= 0 || rows.end <= rows.begin) return -1.0f;
  scratch.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const float x = centre(columns.begin + i, level.stride);
    const float x1 = x + cell.x1, x2 = x + cell.x2;
    scratch.width[i] = positive(x2 - x1);
    scratch.shared[i] = positive(min_of(x2, truth.x2) - max_of(x1, truth.x1));
  }
  float highest = -1.0f;  // below every IoU; 0 would be one
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float y = centre(row, level.stride);
    const float y1 = y + cell.y1, y2 = y + cell.y2;
    const float height = positive(y2 - y1), shared = positive(min_of(y2, truth.y2) - max_of(y1, truth.y1));
    const float* widths = scratch.width.data();
    const float* shares = scratch.shared.data();
    float* overlap = scratch.overlap.data();
    float top_of_row = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      overlap[i] = ratio(shares[i] * shared, widths[i] * height, truth_area);
      top_of_row = max_of(top_of_row, overlap[i]);
    }
    if (top_of_row <= min_iou) continue;  // spares the loop below, whose branches cost more than the arithmetic
    highest = max_of(highest, top_of_row);
    for (int64_t i = 0; i < count; ++i) {
      if (overlap[i] > min_iou) visit(row, columns.begin + i, overlap[i]);
    }
  }
  return highest;
}

// sizes (L, 2) int64: cells down and across; cell (L, shapes, 4), strides (L,), ranges (L, 2) float32, no row for
// anchors; all contiguous and on the CPU, and alive as long as the grid. `priors` is what they must add up to.
inline Grid read_grid(const Tensor& sizes, const Tensor& cell, const Tensor& strides, const Tensor& ranges,
                      int64_t priors) {
  Grid grid{};
  grid.points = ranges.size(0) > 0;
  const int64_t count = sizes.size(0), shapes = cell.size(1);
  STD_TORCH_CHECK(cell.size(0) == count && strides.size(0) == count && (!grid.points || ranges.size(0) == count),
                  "a tiling of ", count, " levels has ", cell.size(0), " rows of cell, ", strides.size(0),
                  " strides and ", ranges.size(0), " ranges");
  STD_TORCH_CHECK(!grid.points || shapes == 1, "points are one a cell, got ", shapes);
  for (int64_t i = 0; i < count; ++i) {
    Level level{};
    level.height = data<int64_t>(sizes)[2 * i];
    level.width = data<int64_t>(sizes)[2 * i + 1];
    level.shapes = shapes;
    level.first = grid.priors;
    level.stride = data<float>(strides)[i];
    level.cell = data<Box>(cell) + i * shapes;
    if (grid.points) {
      level.low = data<float>(ranges)[2 * i];
      level.high = data<float>(ranges)[2 * i + 1];
    }
    grid.levels.push_back(level);
    grid.priors += level.count();
  }
  STD_TORCH_CHECK(grid.priors == priors, "the tiling has ", grid.priors, " priors, the predictions ", priors);
  return grid;
}

// Priors that do not tile. sizes (L, 3) int64: cells down and across, priors of a cell; their product is the number of
// a level's priors, and where the head's scores lie in maps, their order. ranges as above.
inline Grid read_levels(const Tensor& sizes, const Tensor& ranges, int64_t priors) {
  Grid grid{};
  grid.points = ranges.size(0) > 0;
  for (int64_t i = 0; i < sizes.size(0); ++i) {
    const int64_t* size = data<int64_t>(sizes) + 3 * i;
    Level level{};
    level.height = size[0];
    level.width = size[1];
    level.shapes = size[2];
    level.first = grid.priors;
    if (grid.points) {
      level.low = data<float>(ranges)[2 * i];
      level.high = data<float>(ranges)[2 * i + 1];
    }
    grid.levels.push_back(level);
    grid.priors += level.count();
  }
  STD_TORCH_CHECK(grid.priors == priors, "the levels have ", grid.priors, " priors, the predictions ", priors);
  return grid;
}

// logits: one (B, A, C), or a (B, shapes x C, H, W) of every level, with any strides.
inline std::vector<Scores> read_scores(const std::vector<Tensor>& logits, const Grid& grid, int64_t classes) {
  std::vector<Scores> scores;
  const bool whole = logits[0].dim() == 3;
  for (int64_t i = 0; i < grid.count(); ++i) {
    const Level& level = grid.levels[i];
    const Tensor& own = whole ? logits[0] : logits[i];
    Scores at{};
    at.image_stride = own.stride(0);
    if (whole) {
      // one tensor of all levels: rows and columns are steps over the priors between, which lie row-major
      at.first = data<float>(own) + level.first * own.stride(1);
      at.shape_stride = own.stride(1);
      at.class_stride = own.stride(2);
      at.column_stride = level.shapes * at.shape_stride;
      at.row_stride = level.width * at.column_stride;
    } else {
      at.first = data<float>(own);
      at.class_stride = own.stride(1);
      at.shape_stride = classes * at.class_stride;
      at.row_stride = own.stride(2);
      at.column_stride = own.stride(3);
    }
    scores.push_back(at);
  }
  return scores;
}

// splits (B + 1,) int64 on the CPU: raises where they are not the beginnings of `rows` ground truths.
inline void check_splits(const Tensor& splits, int64_t rows) {
  const int64_t images = splits.size(0) - 1;
  const int64_t* split = data<int64_t>(splits);
  STD_TORCH_CHECK(split[0] == 0 && split[images] == rows, "splits must run from 0 to the ", rows,
                  " ground truths, got ", split[0], " to ", split[images]);
  for (int64_t image = 0; image < images; ++image) {
    STD_TORCH_CHECK(split[image] <= split[image + 1], "splits must not descend, they do after ", split[image]);
  }
}

// Checks splits as check_splits does, and labels (G,) int64 on the CPU: raises where one is no class.
inline void check_truth(const Tensor& splits, const Tensor& labels, int64_t classes) {
  const int64_t rows = labels.size(0);
  const int64_t* label = data<int64_t>(labels);
  check_splits(splits, rows);
  for (int64_t g = 0; g < rows; ++g) {
    STD_TORCH_CHECK(label[g] >= 0 && label[g] < classes, "labels must be below the ", classes, " classes, got ",
                    label[g]);
  }
}

}  // namespace detsearch
