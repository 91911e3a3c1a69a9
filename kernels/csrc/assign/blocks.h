// The candidates of a ground truth among priors that repeat in no pattern: anchors clipped to the image, or anything.
// Priors are cut into blocks of neighbours. A bound from a block's hull discards the block for most ground truths; only
// what is left is compared exactly. Source of the bounds: detsearch_cli/slots/assigners/_candidates.py.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "common/grid.h"

namespace detsearch {

constexpr float kSlack = 1.0f - 1e-4f;  // rounding must not make a bound discard what the exact comparison accepts

class Blocks {
 public:
  static constexpr int64_t kSize = 32;

  // priors: (A, 4) boxes, or (A, 2) points where the grid has ranges; level after level as the grid's counts say.
  Blocks(const Grid& grid, const float* priors) : grid_(grid), priors_(priors) {
    const int64_t count = (grid.priors + kSize - 1) / kSize;
    for (std::vector<float>* side : {&x1_, &y1_, &x2_, &y2_, &wide_, &high_, &small_}) side->resize(count);
    for (int64_t block = 0; block < count; ++block) summarise(block);
  }

  // Calls visit(first prior, 1, 1) for all candidates of a box, in order. near: memory of the caller, used again by
  // every call.
  template <typename Visit>
  void visit(const Box& truth, float min_iou, std::vector<int32_t>& near, const Visit& visit) const {
    each(truth, min_iou, near, [&](int64_t prior, float) { visit(prior, int64_t{1}, int64_t{1}); });
  }

  // The same as best_level of runs.h.
  int64_t best_level(const Box& truth, float min_iou, std::vector<int32_t>& near) const {
    if (grid_.points) return level_for(grid_.levels.data(), grid_.count(), truth);
    int64_t best = -1;
    float highest = -1.0f;
    each(truth, min_iou, near, [&](int64_t prior, float overlap) {
      best = overlap > highest ? prior : best;
      highest = max_of(overlap, highest);
    });
    return best < 0 ? -1 : grid_.level_of(best);
  }

 private:
  // The priors of a block, side by side. The last block may be short; its last prior is repeated, so that loops have a
  // constant length and the hull does not change.
  struct Lanes {
    float x1[kSize], y1[kSize], x2[kSize], y2[kSize];
  };

  void load(int64_t block, Lanes& lanes) const {
    const int64_t first = block * kSize, length = std::min(kSize, grid_.priors - first);
    if (grid_.points) {
      const float* at = priors_ + 2 * first;
      for (int64_t i = 0; i < length; ++i) {
        lanes.x1[i] = lanes.x2[i] = at[2 * i];
        lanes.y1[i] = lanes.y2[i] = at[2 * i + 1];
      }
    } else {
      const float* at = priors_ + 4 * first;
      for (int64_t i = 0; i < length; ++i) {
        lanes.x1[i] = at[4 * i];
        lanes.y1[i] = at[4 * i + 1];
        lanes.x2[i] = at[4 * i + 2];
        lanes.y2[i] = at[4 * i + 3];
      }
    }
    for (int64_t i = length; i < kSize; ++i) {
      lanes.x1[i] = lanes.x1[length - 1];
      lanes.y1[i] = lanes.y1[length - 1];
      lanes.x2[i] = lanes.x2[length - 1];
      lanes.y2[i] = lanes.y2[length - 1];
    }
  }

  void summarise(int64_t block) {
    constexpr float kFar = std::numeric_limits<float>::infinity();
    Lanes lanes;
    load(block, lanes);
    // a NaN coordinate leaves the hull as it is: min_of and max_of return the second operand then
    Box hull{kFar, kFar, -kFar, -kFar};
    float wide = 0.0f, high = 0.0f, small = kFar;
    for (int64_t i = 0; i < kSize; ++i) {
      const float width = positive(lanes.x2[i] - lanes.x1[i]), height = positive(lanes.y2[i] - lanes.y1[i]);
      hull = {min_of(lanes.x1[i], hull.x1), min_of(lanes.y1[i], hull.y1), max_of(lanes.x2[i], hull.x2),
              max_of(lanes.y2[i], hull.y2)};
      wide = max_of(width, wide);
      high = max_of(height, high);
      small = min_of(width * height, small);
    }
    x1_[block] = hull.x1;
    y1_[block] = hull.y1;
    x2_[block] = hull.x2;
    y2_[block] = hull.y2;
    wide_[block] = wide;
    high_[block] = high;
    small_[block] = small;
  }

  // Numbers of the blocks that may hold a candidate.
  void find_near(const Box& truth, float min_iou, std::vector<int32_t>& near) const {
    const int64_t count = static_cast<int64_t>(x1_.size());
    const float truth_area = area(truth), part = min_iou * kSlack;
    near.resize(count);
    int32_t* out = near.data();
    int64_t end = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float across = min_of(x2_[i], truth.x2) - max_of(x1_[i], truth.x1);
      const float down = min_of(y2_[i], truth.y2) - max_of(y1_[i], truth.y1);
      // the most that a prior of the block can share, against the least that an IoU above min_iou needs
      const float shared = positive(min_of(across, wide_[i])) * positive(min_of(down, high_[i]));
      const bool may = grid_.points ? (across >= 0.0f) & (down >= 0.0f) : shared > max_of(truth_area, small_[i]) * part;
      out[end] = static_cast<int32_t>(i);  // always written, seldom kept: no branch
      end += may;
    }
    near.resize(end);
  }

  // Calls each(prior, IoU, 0 for points) for all candidates.
  template <typename Each>
  void each(const Box& truth, float min_iou, std::vector<int32_t>& near, const Each& each) const {
    find_near(truth, min_iou, near);
    Lanes lanes;
    float overlap[kSize];
    for (const int32_t block : near) {
      load(block, lanes);
      const int64_t first = block * kSize, length = std::min(kSize, grid_.priors - first);
      if (grid_.points) {
        for (int64_t i = 0; i < length; ++i) {
          const Level& level = grid_.levels[grid_.level_of(first + i)];
          const float x = lanes.x1[i], y = lanes.y1[i];
          if (point_fits(level, x - truth.x1, truth.x2 - x, y - truth.y1, truth.y2 - y)) each(first + i, 0.0f);
        }
        continue;
      }
      // all of kSize, also beyond `length`: a constant length makes vectors
      for (int64_t i = 0; i < kSize; ++i) {
        overlap[i] = iou({lanes.x1[i], lanes.y1[i], lanes.x2[i], lanes.y2[i]}, truth);
      }
      for (int64_t i = 0; i < length; ++i) {
        if (overlap[i] > min_iou) each(first + i, overlap[i]);
      }
    }
  }

  const Grid& grid_;
  const float* priors_;
  std::vector<float> x1_, y1_, x2_, y2_;    // hull
  std::vector<float> wide_, high_, small_;  // widest, highest, and least area of its priors
};

}  // namespace detsearch
