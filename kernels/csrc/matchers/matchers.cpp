// Max-IoU, ATSS and FCOS assignment of a whole batch on the CPU, without a ground truth x prior matrix. They choose
// exactly what max_iou.py, atss.py and fcos.py in detsearch_cli/slots/assigners choose.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "matchers/batch.h"

namespace detsearch {
namespace {

// ---- max-IoU ----

struct Thresholds {
  float positive, negative;
  bool low_quality;
};

// One image. A matched prior holds 2 g + (1 where it is positive, else 0) until the image is finished.
class MaxIou {
 public:
  MaxIou(const Batch& batch, const Thresholds& limits, int64_t* matched)
      : batch_(batch), limits_(limits), matched_(matched) {}

  void assign(int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) match_overlapping(g);
    // after all offers: which ground truth overlaps a prior most is known only then
    for (const int64_t prior : low_quality_) match_low_quality(prior, begin, end);
    for (const int64_t prior : touched_) {
      matched_[prior] = matched_[prior] & 1 ? matched_[prior] >> 1 : kIgnore;
    }
  }

 private:
  // Gives g the priors of IoU >= negative that it overlaps most, and remembers the ones it overlaps best.
  void match_overlapping(int64_t g) {
    const Box& truth = batch_.truth[g];
    if (!finite(truth)) return;
    best_.clear();
    highest_ = 0.0f;
    // visit() takes what is above a limit, and IoU above the float below a threshold is IoU from the threshold on
    visit(truth, std::nextafter(limits_.negative, 0.0f), [&](int64_t prior, const Box& at, float overlap) {
      offer(prior, at, g, overlap);
      remember(prior, overlap);
    });
    if (!limits_.low_quality) return;
    // most ground truths have a prior above the threshold; only the others are searched again from 0 on
    if (best_.empty() && limits_.negative > 0.0f) {
      visit(truth, 0.0f, [&](int64_t prior, const Box&, float overlap) { remember(prior, overlap); });
    }
    low_quality_.insert(low_quality_.end(), best_.begin(), best_.end());
  }

  template <typename Each>
  void visit(const Box& truth, float above, const Each& each) {
    for (const Level& level : batch_.grid.levels) {
      for (int64_t shape = 0; shape < level.shapes; ++shape) {
        visit_anchors(level, shape, truth, above, scratch_, [&](int64_t row, int64_t column, float overlap) {
          each(level.prior(row, column, shape), box_at(level, row, column, shape), overlap);
        });
      }
    }
  }

  void remember(int64_t prior, float overlap) {
    if (overlap < highest_) return;
    if (overlap > highest_) best_.clear();
    highest_ = overlap;
    best_.push_back(prior);
  }

  void offer(int64_t prior, const Box& at, int64_t g, float overlap) {
    int64_t& holder = matched_[prior];
    // `<=`: of equal overlaps the first ground truth keeps the prior. The holder's IoU is computed again, which happens
    // seldom; kept, it would take another array of all priors
    if (holder >= 0 && overlap <= iou(at, batch_.truth[holder >> 1])) return;
    if (holder < 0) touched_.push_back(prior);
    holder = 2 * g + (overlap >= limits_.positive);
  }

  // Makes a prior that is some ground truth's best positive, for the ground truth that overlaps it most.
  void match_low_quality(int64_t prior, int64_t begin, int64_t end) {
    if (matched_[prior] < 0) {  // below the threshold of background, so that nobody has offered
      const Box at = box_of(batch_.grid, prior);
      for (int64_t g = begin; g < end; ++g) {
        const Box& truth = batch_.truth[g];
        const float overlap = finite(truth) ? iou(at, truth) : 0.0f;
        if (overlap > 0.0f) offer(prior, at, g, overlap);
      }
    }
    matched_[prior] |= 1;
  }

  const Batch& batch_;
  const Thresholds& limits_;
  int64_t* matched_;
  RowScratch scratch_;
  float highest_ = 0.0f;
  std::vector<int64_t> best_, low_quality_, touched_;
};

Tensor max_iou(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
               const Tensor& strides, const Tensor& ranges, int64_t priors, double positive_iou, double negative_iou,
               bool low_quality) {
  const Batch batch = read_batch(truth, splits, sizes, cell, strides, ranges, priors);
  const Thresholds limits{static_cast<float>(positive_iou), static_cast<float>(negative_iou), low_quality};
  return for_images(batch, splits, [&](int64_t, int64_t begin, int64_t end, int64_t* matched) {
    MaxIou(batch, limits, matched).assign(begin, end);
  });
}

// ---- FCOS ----

// Gives g all points of a level that fit it, whoever held them; the radius is in strides.
void claim_points(const Level& level, const Box& truth, int64_t g, float radius, int64_t* matched) {
  const float long_side = max_of(truth.x2 - truth.x1, truth.y2 - truth.y1), reach = radius * level.stride;
  if (!(long_side > level.low)) return;  // no distance to a side exceeds the longer side
  const float x = middle(truth.x1, truth.x2), y = middle(truth.y1, truth.y2);
  // no side farther than the range, and near the middle
  const Span columns =
      cells_between(max_of(max_of(truth.x1, truth.x2 - level.high), x - reach),
                    min_of(min_of(truth.x2, truth.x1 + level.high), x + reach), level.stride, level.width);
  const Span rows =
      cells_between(max_of(max_of(truth.y1, truth.y2 - level.high), y - reach),
                    min_of(min_of(truth.y2, truth.y1 + level.high), y + reach), level.stride, level.height);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float point_y = centre(row, level.stride);
    const float above = point_y - truth.y1, below = truth.y2 - point_y, off = magnitude(point_y - y);
    int64_t* out = matched + level.first + row * level.width;
    for (int64_t column = columns.begin; column < columns.end; ++column) {
      const float point_x = centre(column, level.stride);
      // & and a conditional value instead of branches: the loop becomes vectors
      const bool fits = point_fits(level, point_x - truth.x1, truth.x2 - point_x, above, below) & (off < reach) &
                        (magnitude(point_x - x) < reach);
      out[column] = fits ? g : out[column];
    }
  }
}

Tensor fcos_targets(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell,
                    const Tensor& strides, const Tensor& ranges, int64_t priors, double radius) {
  const Batch batch = read_batch(truth, splits, sizes, cell, strides, ranges, priors);
  STD_TORCH_CHECK(batch.grid.points, "FCOS's targets need a tiling with ranges of distances, got anchors");
  return for_images(batch, splits, [&](int64_t, int64_t begin, int64_t end, int64_t* matched) {
    // the smallest box comes last and overwrites the others, of equal ones the first ground truth
    std::vector<std::pair<float, int64_t>> order;
    for (int64_t g = begin; g < end; ++g) {
      if (finite(batch.truth[g])) order.emplace_back(area(batch.truth[g]), g);
    }
    std::sort(order.rbegin(), order.rend());
    // levels outside: what is overwritten then lies in the cache
    for (const Level& level : batch.grid.levels) {
      for (const auto& [size, g] : order) claim_points(level, batch.truth[g], g, static_cast<float>(radius), matched);
    }
  });
}

// ---- ATSS ----

struct Near {
  float squared;
  int64_t row, column;
  bool operator<(const Near& other) const {
    if (squared != other.squared) return squared < other.squared;
    return row != other.row ? row < other.row : column < other.column;
  }
};

// The `count` cells of a level with the nearest centres, unordered; of equally near ones the first.
void nearest_cells(const Level& level, float x, float y, int64_t count, std::vector<Near>& nearest) {
  count = std::min(count, level.height * level.width);
  for (int64_t side = first_side(count);; side *= 2) {
    const Span columns = around(x, level.stride, side, level.width), rows = around(y, level.stride, side, level.height);
    nearest.clear();  // the larger square holds the smaller one
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const float down = y - centre(row, level.stride);
      for (int64_t column = columns.begin; column < columns.end; ++column) {
        nearest.push_back({squared(x - centre(column, level.stride), down), row, column});
      }
    }
    if (static_cast<int64_t>(nearest.size()) < count) continue;  // a level with few rows cuts the square
    std::nth_element(nearest.begin(), nearest.begin() + (count - 1), nearest.end());
    if (surely_nearest(level, x, y, columns, rows, nearest[count - 1].squared)) break;
  }
  nearest.resize(count);
}

struct Overlapping {
  PriorPosition position;
  float overlap;
};

// Mean plus deviation. float64, so that the order of summation does not decide.
double threshold_of(const std::vector<Overlapping>& candidates) {
  const double count = static_cast<double>(candidates.size());
  double mean = 0.0, spread = 0.0;
  for (const Overlapping& one : candidates) mean += one.overlap;
  mean /= count;
  if (candidates.size() < 2) return mean;  // the deviation of one number divides by 0
  for (const Overlapping& one : candidates) spread += (one.overlap - mean) * (one.overlap - mean);
  return mean + std::sqrt(spread / (count - 1.0));
}

Tensor atss(const Tensor& truth, const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
            const Tensor& ranges, int64_t priors, int64_t top_k) {
  STD_TORCH_CHECK(top_k >= 1, "top_k must be at least 1, got ", top_k);
  const Batch batch = read_batch(truth, splits, sizes, cell, strides, ranges, priors);
  return for_images(batch, splits, [&](int64_t, int64_t begin, int64_t end, int64_t* matched) {
    std::vector<Near> near;
    std::vector<Overlapping> candidates;
    for (int64_t g = begin; g < end; ++g) {
      const Box& box = batch.truth[g];
      if (!finite(box)) continue;
      candidates.clear();
      for (int64_t i = 0; i < batch.grid.count(); ++i) {
        const Level& level = batch.grid.levels[i];
        nearest_cells(level, middle(box.x1, box.x2), middle(box.y1, box.y2), top_k, near);
        for (const Near& at : near) {
          for (int64_t shape = 0; shape < level.shapes; ++shape) {
            candidates.push_back({{i, at.row, at.column, shape}, iou(box_at(level, at.row, at.column, shape), box)});
          }
        }
      }
      const double threshold = threshold_of(candidates);
      for (const auto& [position, overlap] : candidates) {
        const Level& level = batch.grid.levels[position.level];
        if (!(overlap >= threshold)) continue;
        // 0.01 px, as in the authors' code: a centre on a side is outside
        if (!(depth(box, centre(position.column, level.stride), centre(position.row, level.stride)) > 0.01f)) continue;
        int64_t& holder = matched[level.prior(position.row, position.column, position.shape)];
        const Box at = box_at(level, position.row, position.column, position.shape);
        // `>`: of equal overlaps the first ground truth keeps the prior
        if (holder < 0 || overlap > iou(at, batch.truth[holder])) holder = g;
      }
    }
  });
}

}  // namespace
}  // namespace detsearch

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  // truth, splits and a tiling's sizes, cell, strides and ranges; priors: of all levels -> matched (B, A)
  m.def(
      "max_iou(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, int priors, "
      "float positive_iou, float negative_iou, bool low_quality) -> Tensor");
  m.def(
      "fcos_targets(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, "
      "int priors, float radius) -> Tensor");
  m.def(
      "atss(Tensor truth, Tensor splits, Tensor sizes, Tensor cell, Tensor strides, Tensor ranges, int priors, "
      "int top_k) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) {
  m.impl("max_iou", TORCH_BOX(&detsearch::max_iou));
  m.impl("fcos_targets", TORCH_BOX(&detsearch::fcos_targets));
  m.impl("atss", TORCH_BOX(&detsearch::atss));
}
