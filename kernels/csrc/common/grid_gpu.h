// The candidates of a ground truth among priors that tile the image, found by a block of threads: grid.h on a GPU.

#pragma once

#include "common/cells.h"
#include "common/gpu.h"

namespace detsearch::gpu {

constexpr int kMaxLevels = 16;
constexpr int kWindows = 64;  // opened together; nine shapes on five levels are 45
constexpr int32_t kMaxPriors = 1 << 30;

// Grid of grid.h as an argument of a kernel; the levels' `cell` is memory of the GPU.
struct DeviceGrid {
  Level levels[kMaxLevels];
  int32_t count, shapes, priors;  // levels, priors of a cell, priors of all levels
  bool points;                    // candidates by distances, else by IoU

  __device__ int32_t windows() const { return count * shapes; }
};

struct DevicePosition {
  int32_t level, row, column, shape;
};

__device__ inline DevicePosition position_of(const DeviceGrid& grid, int32_t prior) {
  int32_t i = grid.count - 1;  // from the last, as Grid::level_of
  while (grid.levels[i].first > prior) --i;
  // 32 bits: a GPU divides 64 bits in a long sequence of instructions
  const int32_t inside = prior - static_cast<int32_t>(grid.levels[i].first);
  const int32_t cell = inside / grid.shapes, width = static_cast<int32_t>(grid.levels[i].width);
  return {i, cell / width, cell % width, inside % grid.shapes};
}

// A window: the cells of one level near a ground truth, for one shape. Cells are numbered through all windows, so that
// threads share them evenly; end: the number after the window's last cell.
struct Windows {
  Box cell[kWindows];
  int32_t level[kWindows], shape[kWindows], row[kWindows], column[kWindows], columns[kWindows], end[kWindows];
};

// How much a prior and a box must share along each axis for an IoU above min_iou, in px; less than that by far more
// than rounding, and 0 where sides are so short that rounding counts.
struct Shared {
  float across, down;
};

__device__ inline Shared least_shared(const Level& level, const Box& cell, const Box& truth, float min_iou) {
  const float width = min_of(cell.x2 - cell.x1, truth.x2 - truth.x1);
  const float height = min_of(cell.y2 - cell.y1, truth.y2 - truth.y1);
  const float reach = max_of(max_of(fabsf(truth.x1), fabsf(truth.x2)), max_of(fabsf(truth.y1), fabsf(truth.y2)));
  const float extent = level.stride * static_cast<float>(level.height + level.width) + reach;
  if (!(min_of(width, height) > 1e-4f * extent)) return {0.0f, 0.0f};
  // the area shared is at least min_iou of the area covered by both, which is the sum of the areas less the one shared
  const float shared = 0.99f * min_iou / (1.0f + min_iou) * (area(cell) + area(truth));
  return {shared / height, shared / width};
}

// Fills one window; returns its number of cells.
__device__ inline int32_t open_window(const DeviceGrid& grid, const Box& truth, float min_iou, int32_t number,
                                      int32_t window, Windows& windows) {
  if (number >= grid.windows()) return 0;
  const int32_t i = number / grid.shapes, shape = number % grid.shapes;
  const Level& level = grid.levels[i];
  const Box cell = level.cell[shape];
  Span rows, columns;
  if (grid.points) {
    rows = cells_between(truth.y1, truth.y2, level.stride, level.height);
    columns = cells_between(truth.x1, truth.x2, level.stride, level.width);
  } else {
    if (!areas_allow(area(cell), area(truth), min_iou)) return 0;
    const Shared shared = least_shared(level, cell, truth, min_iou);
    const float left = truth.x1 - cell.x2 + shared.across, right = truth.x2 - cell.x1 - shared.across;
    const float top = truth.y1 - cell.y2 + shared.down, bottom = truth.y2 - cell.y1 - shared.down;
    columns = cells_between(left, right, level.stride, level.width);
    rows = cells_between(top, bottom, level.stride, level.height);
  }
  if (rows.end <= rows.begin || columns.end <= columns.begin) return 0;
  windows.cell[window] = cell;
  windows.level[window] = i;
  windows.shape[window] = shape;
  windows.row[window] = static_cast<int32_t>(rows.begin);
  windows.column[window] = static_cast<int32_t>(columns.begin);
  windows.columns[window] = static_cast<int32_t>(columns.end - columns.begin);
  return static_cast<int32_t>((rows.end - rows.begin) * (columns.end - columns.begin));
}

// Opens the windows from number `first` on; returns their number of cells. For all threads of a block together.
__device__ inline int32_t open_windows(const DeviceGrid& grid, const Box& truth, float min_iou, int32_t first,
                                       Windows& windows) {
  __syncthreads();  // nobody reads the windows before any more
  const int32_t window = static_cast<int32_t>(threadIdx.x);
  if (window < kWindows) windows.end[window] = open_window(grid, truth, min_iou, first + window, window, windows);
  __syncthreads();
  int32_t end = 0;  // of all windows up to this one; a scan of 64 numbers would take more barriers
  if (window < kWindows) {
    for (int32_t i = 0; i <= window; ++i) end += windows.end[i];
  }
  __syncthreads();  // all sums are taken before the first number is overwritten
  if (window < kWindows) windows.end[window] = end;
  __syncthreads();
  return windows.end[kWindows - 1];
}

// IoU of the prior at a cell; rounds as visit_anchors does.
__device__ inline float overlap_at(float stride, const Box& cell, const Box& truth, int32_t row, int32_t column) {
  const float x = centre(column, stride), y = centre(row, stride);
  const float x1 = x + cell.x1, x2 = x + cell.x2, y1 = y + cell.y1, y2 = y + cell.y2;
  const float across = positive(min_of(x2, truth.x2) - max_of(x1, truth.x1));
  const float down = positive(min_of(y2, truth.y2) - max_of(y1, truth.y1));
  return ratio(across * down, positive(x2 - x1) * positive(y2 - y1), area(truth));
}

// Whether a prior is a candidate (`fits`), and its IoU, which points do not have.
struct PriorCheck {
  bool fits;
  int32_t prior, level;
  float overlap;
};

__device__ inline PriorCheck check_prior(const DeviceGrid& grid, const Box& truth, float min_iou,
                                         const Windows& windows, int32_t window, int32_t inside) {
  const int32_t row = windows.row[window] + inside / windows.columns[window];
  const int32_t column = windows.column[window] + inside % windows.columns[window];
  const int32_t i = windows.level[window];
  const Level& level = grid.levels[i];
  const int32_t prior = static_cast<int32_t>(level.first) +
                        (row * static_cast<int32_t>(level.width) + column) * grid.shapes + windows.shape[window];
  if (grid.points) {
    const float x = centre(column, level.stride), y = centre(row, level.stride);
    return {point_fits(level, x - truth.x1, truth.x2 - x, y - truth.y1, truth.y2 - y), prior, i, 0.0f};
  }
  const float overlap = overlap_at(level.stride, windows.cell[window], truth, row, column);
  return {overlap > min_iou, prior, i, overlap};
}

// Calls visit(PriorCheck) for cells begin..end - 1 of the windows, shared among the threads of the block. All threads
// of a warp call it together, with a PriorCheck that does not fit where there is no cell, so that they may vote.
template <typename Visit>
__device__ void visit_cells(const DeviceGrid& grid, const Box& truth, float min_iou, const Windows& windows,
                            int32_t begin, int32_t end, const Visit& visit) {
  int32_t window = 0;
  for (int32_t base = begin; base < end; base += blockDim.x) {
    const int32_t number = base + static_cast<int32_t>(threadIdx.x);
    PriorCheck check = {false, 0, 0, 0.0f};
    if (number < end) {
      // the window is kept between rounds: a thread's numbers only grow
      while (number >= windows.end[window]) ++window;
      check = check_prior(grid, truth, min_iou, windows, window, number - (window ? windows.end[window - 1] : 0));
    }
    visit(check);
  }
}

// Calls visit(PriorCheck) for all cells near a ground truth, as visit_cells does.
template <typename Visit>
__device__ void visit_near(const DeviceGrid& grid, const Box& truth, float min_iou, Windows& windows,
                           const Visit& visit) {
  for (int32_t first = 0; first < grid.windows(); first += kWindows) {
    const int32_t cells = open_windows(grid, truth, min_iou, first, windows);
    visit_cells(grid, truth, min_iou, windows, 0, cells, visit);
  }
}

// The level that fits a box best, as best_level of runs.h: `best_rank` is the least rank_of of all candidates, which is
// that of the highest IoU, of equal ones on the lowest level.
constexpr uint64_t kNone = ~uint64_t(0);

__device__ inline uint64_t rank_of(const PriorCheck& check) {
  // floats from 0 on order as their bits do; inverted, the least is the highest IoU
  return static_cast<uint64_t>(~float_to_bits(check.overlap)) << 32 | static_cast<uint32_t>(check.level);
}

__device__ inline int32_t best_level(const DeviceGrid& grid, const Box& truth, uint64_t best_rank) {
  if (grid.points) return static_cast<int32_t>(level_for(grid.levels, grid.count, truth));
  return best_rank == kNone ? -1 : static_cast<int32_t>(static_cast<uint32_t>(best_rank));
}

}  // namespace detsearch::gpu
