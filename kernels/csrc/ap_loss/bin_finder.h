// The bin of a score between many thresholds, on the CPU.

#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "ap_loss/ap_loss.h"

namespace detsearch::ap {

constexpr int kBlock = 512;  // scores whose cells are computed together, in a loop that becomes vectors
constexpr uint32_t kSeveral = 1u << 31;

// Finds the bin of a score: how many edges lie at or below it. A table of cells of equal width over the range of the
// edges leaves two comparisons for nearly all scores.
template <typename T>
class BinFinder {
 public:
  // Sorts thresholds, at least 1, with their owners. n: how many scores will be looked up.
  BinFinder(const std::vector<double>& threshold, int64_t n, double* sorted, int32_t* owner) {
    const int64_t count = static_cast<int64_t>(threshold.size());
    const auto [low, high] = std::minmax_element(threshold.begin(), threshold.end());
    T ends[2];
    edge_of(*low, &ends[0]);
    edge_of(*high, &ends[1]);
    choose_cells(ends[0], ends[1], count, n);
    std::vector<int32_t> cell(count);
    std::vector<uint32_t> end(cells_);  // of each cell's edges
    for (int64_t b = 0; b < count; ++b) {
      T edge;
      edge_of(threshold[b], &edge);
      cell[b] = cell_of(edge);
      ++end[cell[b]];
    }
    uint32_t begin = 0;  // from counts to beginnings; the loop below moves each on to the end of its cell
    for (int64_t c = 0; c < cells_; ++c) begin += std::exchange(end[c], begin);
    for (int64_t b = 0; b < count; ++b) owner[end[cell[b]]++] = static_cast<int32_t>(b);
    edges_.resize(count);
    table_ = std::make_unique_for_overwrite<Cell[]>(cells_ + 1);
    constexpr T none = std::numeric_limits<T>::quiet_NaN();  // no score passes it
    const auto blank = [](uint32_t from) { return Cell{none, none, from}; };
    Cell* next = table_.get();
    for (uint32_t from = 0; from < count;) {
      const int32_t c = cell[owner[from]];
      const uint32_t to = end[c];
      // equal thresholds by owner: std::sort may leave equals in any order, and sums over bins would differ
      std::sort(&owner[from], &owner[from] + (to - from), [&](int32_t a, int32_t b) {
        return threshold[a] < threshold[b] || (threshold[a] == threshold[b] && a < b);
      });
      for (uint32_t b = from; b < to; ++b) {
        sorted[b] = threshold[owner[b]];
        edge_of(sorted[b], &edges_[b]);
      }
      next = std::fill_n(next, &table_[c] - next, blank(from));
      const uint32_t many = to - from;
      *next++ = {edges_[from], many > 1 ? edges_[from + 1] : none, many > 2 ? from | kSeveral : from};
      from = to;
    }
    std::fill(next, table_.get() + cells_ + 1, blank(static_cast<uint32_t>(count)));
  }

  // Calls visit(index, bin) for n scores; whether none of them is NaN.
  template <typename Visit>
  bool find(const T* scores, int64_t n, Visit visit) const {
    int32_t cell[kBlock];  // in the first-level cache
    bool valid = true;
    for (int64_t from = 0; from < n; from += kBlock) {
      const T* s = scores + from;
      const int m = static_cast<int>(std::min<int64_t>(kBlock, n - from));
      int saw_nan = 0;
      for (int k = 0; k < m; ++k) {
        cell[k] = cell_of(s[k]);
        saw_nan |= s[k] != s[k];
      }
      valid &= saw_nan == 0;
      for (int k = 0; k < m; ++k) {
        const Cell& at = table_[cell[k]];
        // comparisons instead of branches: where a score lies in its cell cannot be predicted
        uint32_t bin = at.bin + (s[k] >= at.first) + (s[k] >= at.second);
        if (at.bin & kSeveral) bin = search(cell[k], s[k]);
        visit(from + k, bin);
      }
    }
    return valid;
  }

 private:
  struct Cell {
    T first, second;  // edges of the cell, NaN where it has fewer
    uint32_t bin;     // edges in lower cells; kSeveral where the cell has more than two
  };

  void choose_cells(T low, T high, int64_t count, int64_t n) {
    int64_t cells = 64;
    while (cells < std::min<int64_t>({8 * count, n / 4, 65536})) cells *= 2;
    cells_ = cells;
    low_ = low;
    last_ = static_cast<T>(cells - 1);
    // the width is at least 1: equal thresholds would divide by 0
    scale_ = static_cast<T>(cells) / std::max(high - low, T(1));
  }

  // Never decreases with the score, so a score at or above an edge is in the edge's cell or a later one.
  int32_t cell_of(T score) const {
    T x = (score - low_) * scale_;
    // limited before the conversion; a NaN fails the first comparison and becomes 0
    x = x > T(0) ? x : T(0);
    x = x < last_ ? x : last_;
    return static_cast<int32_t>(x);
  }

  uint32_t search(int32_t cell, T score) const {
    const T *edges = edges_.data(), *from = edges + (table_[cell].bin & ~kSeveral);
    const T* to = edges + (table_[cell + 1].bin & ~kSeveral);
    return static_cast<uint32_t>(std::upper_bound(from, to, score) - edges);
  }

  int64_t cells_;
  T low_, scale_, last_;
  std::vector<T> edges_;
  std::unique_ptr<Cell[]> table_;  // and one beyond the last
};

}  // namespace detsearch::ap
