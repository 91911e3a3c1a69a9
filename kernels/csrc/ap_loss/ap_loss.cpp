// Parameterized AP loss on the CPU without the positives x predictions matrix and without sorting the scores.
//
// f is piecewise linear. So the sum of f over all predictions is, for every segment, slope x (excess over the left
// threshold of the segment - excess over the right one). Each score therefore goes once into the bin between two
// thresholds s_i + knot; suffix sums over bins give the sums of every positive, and a score's gradient depends on its
// bin alone.

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "ap_loss/ap_loss_operators.h"
#include "ap_loss/bin_finder.h"
#include "common/large_pages.h"

namespace detsearch::ap {
namespace {

constexpr int64_t kGrain = 65536;  // fewer scores are not worth a thread

struct Bin {
  double sum = 0;  // of the scores
  int64_t count = 0;
};

int64_t shares_of(int64_t n) {
  return std::clamp<int64_t>(n / kGrain, 1, static_cast<int64_t>(torch::stable::get_num_threads()));
}

// Splits [0, n) into shares, one a thread.
template <typename Work>
void in_shares(int64_t n, Work work) {
  const int64_t shares = shares_of(n);
  torch::stable::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) work(k, n * k / shares, n * (k + 1) / shares);
  });
}

// The scores of a level in the order of its memory, and where the bin of each is kept.
template <typename T, typename Index>
struct Run {
  const T* scores;
  Index* bins;
  int64_t count;
};

// Calls visit(run, from, to) for the parts of the runs that lie in [from, to) when they are laid one after the other.
template <typename T, typename Index, typename Visit>
void in_runs(const std::vector<Run<T, Index>>& runs, int64_t from, int64_t to, Visit visit) {
  int64_t begin = 0;
  for (const Run<T, Index>& run : runs) {
    const int64_t first = std::max(from - begin, int64_t(0)), last = std::min(to - begin, run.count);
    if (first < last) visit(run, first, last);
    begin += run.count;
  }
}

// Fills the bins and keeps the bin of every score; whether no score is NaN.
template <typename T, typename Index>
bool fill(const BinFinder<T>& finder, const std::vector<Run<T, Index>>& runs, int64_t n, std::vector<Bin>& bins) {
  const size_t size = bins.size();
  std::vector<std::vector<Bin>> parts(shares_of(n) - 1);  // of the shares after the first
  std::vector<char> valid(parts.size() + 1, 1);  // not vector<bool>, whose elements share bytes: threads write them
  in_shares(n, [&](int64_t share, int64_t from, int64_t to) {
    if (share > 0) parts[share - 1].resize(size);
    Bin* part = share > 0 ? parts[share - 1].data() : bins.data();
    in_runs(runs, from, to, [&](const Run<T, Index>& run, int64_t first, int64_t last) {
      const T* mine = run.scores + first;
      Index* kept = run.bins + first;
      valid[share] &= finder.find(mine, last - first, [=](int64_t k, uint32_t bin) {
        part[bin].sum += static_cast<double>(mine[k]);
        ++part[bin].count;
        kept[k] = static_cast<Index>(bin);
      });
    });
  });
  // in the order of the scores, whichever thread ended first
  for (const std::vector<Bin>& part : parts) {
    for (size_t b = 0; b < size; ++b) {
      bins[b].sum += part[b].sum;
      bins[b].count += part[b].count;
    }
  }
  return std::find(valid.begin(), valid.end(), 0) == valid.end();
}

// Takes the scores of ignored rows out again: into the lowest bin, which adds nothing and has no slope. Afterwards,
// because a question asked of every score would cost more than all of them. False where there is no such row.
template <typename T, typename Index>
bool leave_out(const Levels& levels, const std::vector<Run<T, Index>>& runs, const Tensor& ignored,
               std::vector<Bin>& bins) {
  const int64_t* row = ignored.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ignored.numel(); ++i) {
    bool found = false;
    for (size_t l = 0; l < runs.size() && !found; ++l) {
      const LogitLayout& layout = levels.layouts[l];
      const int64_t first = layout.find(row[i], levels.priors);
      found = first >= 0;
      for (int64_t c = 0; found && c < layout.classes; ++c) {
        const int64_t k = first + c * layout.class_stride();
        Index& bin = runs[l].bins[k];
        bins[bin].sum -= static_cast<double>(runs[l].scores[k]);
        --bins[bin].count;
        bin = 0;
      }
    }
    if (!found) return false;
  }
  return true;
}

template <typename T>
bool has_nan(const T* scores, int64_t n) {
  int saw_nan = 0;
  for (int64_t k = 0; k < n; ++k) saw_nan |= scores[k] != scores[k];
  return saw_nan != 0;
}

// The suffix sums at every threshold, in the order of owners. deficit, deficit_sum: of each bin, by how much the
// positives weigh less than 1, and that times their scores.
std::vector<SuffixSums> suffix_sums_of(const double* at, const int32_t* owner, int64_t count, const double* totals,
                                       const std::vector<double>& deficit, const std::vector<double>& deficit_sum) {
  const double *number = totals, *sum = totals + count + 1;
  std::vector<SuffixSums> suffix_sums(count);
  SuffixSums p = {number[count], 0, number[count] - deficit[count], 0};
  for (int64_t b = count - 1; b >= 0; --b) {
    if (b < count - 1) {
      const double gap = at[b + 1] - at[b], all = number[b + 1], weighted = all - deficit[b + 1];
      // the scores right of the bin lie farther from this threshold by `gap`; those of the bin count from the
      // threshold. at_least_0: a sum minus count x threshold cancels, and rounding may leave less than nothing
      p.excess += p.count * gap + at_least_0(sum[b + 1] - all * at[b]);
      p.weighted_excess += p.weighted_count * gap + at_least_0((sum[b + 1] - deficit_sum[b + 1]) - weighted * at[b]);
      p.count += all;
      p.weighted_count += weighted;
    }
    suffix_sums[owner[b]] = p;
  }
  return suffix_sums;
}

std::vector<Row> rows_of(const Loss& loss, const std::vector<SuffixSums>& suffix_sums, const double* quality,
                         int64_t number) {
  std::vector<Row> rows;
  const SuffixSums* of = suffix_sums.data();
  for (int64_t i = 0; i < number; ++i) {
    Sums sums = {};
    for (int k = 0; k + 1 < loss.merged.steps; ++k) sums.add(loss.merged, k, of[k], of[k + 1]);
    rows.push_back(row_of(loss, sums, quality[i]));
    of += loss.merged.steps;
  }
  return rows;
}

// What follows from the thresholds up to a bin; writes the slopes of all bins.
std::vector<Column> columns_of(const Loss& loss, const std::vector<Row>& row, const double* at, const int32_t* owner,
                               int64_t count, double* slopes) {
  const MergedKnots& merged = loss.merged;
  std::vector<Column> column(count + 1);
  for (int64_t b = 0; b < count; ++b) {
    const int32_t i = owner[b] / merged.steps, k = owner[b] % merged.steps;
    // running sums: what the thresholds up to here change, so that a bin's value is read off
    Column& next = column[b + 1] = column[b];
    // with the slope before this threshold: the weight grows along the bin that ends here
    if (b > 0) next.weight += column[b].above * (at[b] - at[b - 1]);
    next.above += row[i].by_above * (merged.above[k] - (k ? merged.above[k - 1] : 0.0));
    next.rank += row[i].by_rank * (merged.rank[k] - (k ? merged.rank[k - 1] : 0.0));
    slopes[b] = column[b].above - column[b].rank;
  }
  slopes[count] = 0.0;  // above every threshold nothing changes
  return column;
}

struct Cpu {
  template <typename T>
  static void own(const Levels& levels, const Tensor& positives, Tensor& own, Tensor& place) {
    const int64_t rows = positives.numel(), classes = levels.layouts[0].classes;
    const int64_t* index = positives.const_data_ptr<int64_t>();
    double* score = own.mutable_data_ptr<double>();
    int64_t* at = place.mutable_data_ptr<int64_t>();
    std::vector<const T*> scores;  // asked once: through the stable ABI a pointer is a call
    for (const Tensor& level : levels.scores) scores.push_back(level.const_data_ptr<T>());
    for (int64_t i = 0; i < rows; ++i) {
      score[i] = std::numeric_limits<double>::quiet_NaN();  // the caller says what is wrong
      at[i] = -1;
      if (index[i] < 0) continue;
      for (size_t l = 0; l < levels.layouts.size(); ++l) {
        const LogitLayout& layout = levels.layouts[l];
        const int64_t first = classes ? layout.find(index[i] / classes, levels.priors) : -1;
        if (first < 0) continue;
        const int64_t k = first + index[i] % classes * layout.class_stride();
        score[i] = static_cast<double>(scores[l][k]);
        at[i] = levels.begin[l] + k;
      }
    }
    std::vector<int64_t> ordered(index, index + rows);
    // most callers pass them ascending, and the test is much cheaper than sorting
    if (!std::is_sorted(ordered.begin(), ordered.end())) std::sort(ordered.begin(), ordered.end());
    if (std::adjacent_find(ordered.begin(), ordered.end()) != ordered.end())
      std::fill(score, score + rows, std::numeric_limits<double>::quiet_NaN());
  }

  template <typename T, typename Index>
  static void bins(const Levels& levels, const Tensor& own, const Tensor& ignored, const Loss& loss, Binned& results) {
    const int64_t rows = own.numel(), steps = loss.merged.steps, count = rows * steps;
    std::vector<Run<T, Index>> runs;
    for (size_t l = 0; l < levels.scores.size(); ++l) {
      use_large_pages(results.bins[l]);
      runs.push_back({levels.scores[l].const_data_ptr<T>(), static_cast<Index*>(results.bins[l].mutable_data_ptr()),
                      levels.layouts[l].count()});
    }
    std::vector<Bin> bins(count + 1);
    bool valid = true;
    if (rows == 0) {
      for (const Run<T, Index>& run : runs) {
        valid &= !has_nan(run.scores, run.count);
        std::fill(run.bins, run.bins + run.count, Index(0));  // the slope 0 is looked up for all
      }
    } else {
      const double* score = own.const_data_ptr<double>();
      std::vector<double> threshold(count);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < steps; ++k) threshold[i * steps + k] = usable(score[i]) + loss.merged.offset[k];
      }
      const BinFinder<T> finder(threshold, levels.count, results.at.mutable_data_ptr<double>(),
                                results.owner.mutable_data_ptr<int32_t>());
      valid = fill(finder, runs, levels.count, bins) && leave_out(levels, runs, ignored, bins);
    }
    bins[0] = {};  // may be infinite, and so may the highest sum; neither matters
    bins[count].sum = 0;
    double *number = results.totals.mutable_data_ptr<double>(), *sum = number + count + 1;
    for (int64_t b = 0; b <= count; ++b) {
      // all of them: added up over processes they tell each of the NaN
      number[b] = valid ? static_cast<double>(bins[b].count) : std::numeric_limits<double>::quiet_NaN();
      sum[b] = valid ? bins[b].sum : std::numeric_limits<double>::quiet_NaN();
    }
  }

  static void answer(const Tensor& totals, const Tensor& at, const Tensor& owner, const Tensor& own,
                     const Tensor& quality, const Loss& loss, const Answer& out) {
    const int64_t rows = own.numel(), count = at.numel();
    const double *threshold = at.const_data_ptr<double>(), *total = totals.const_data_ptr<double>(),
                 *score = own.const_data_ptr<double>(), *u = quality.const_data_ptr<double>();
    double *value = out.loss.mutable_data_ptr<double>(), *slopes = out.slopes.mutable_data_ptr<double>(),
           *by_score = out.by_score.mutable_data_ptr<double>(), *by_quality = out.by_quality.mutable_data_ptr<double>();
    bool valid = total[0] == total[0];
    for (int64_t i = 0; i < rows; ++i) valid &= std::fabs(score[i]) <= kFarthest && u[i] == u[i];
    if (!valid) {  // the caller says what is wrong
      constexpr double nan = std::numeric_limits<double>::quiet_NaN();
      *value = nan;
      std::fill(slopes, slopes + count + 1, nan);
      std::fill(by_score, by_score + rows, nan);
      std::fill(by_quality, by_quality + rows, nan);
      return;
    }
    std::vector<int64_t> bin(rows);
    // negatives have weight 1, so only the few positives need their weights subtracted
    std::vector<double> deficit(count + 1), deficit_sum(count + 1);
    for (int64_t i = 0; i < rows; ++i) {
      bin[i] = std::upper_bound(threshold, threshold + count, score[i]) - threshold;
      const double part = loss.others.value(u[i]);
      deficit[bin[i]] += part;
      deficit_sum[bin[i]] += part * score[i];
    }
    const int32_t* owners = owner.const_data_ptr<int32_t>();
    const std::vector<Row> row =
        rows_of(loss, suffix_sums_of(threshold, owners, count, total, deficit, deficit_sum), u, rows);
    const std::vector<Column> column = columns_of(loss, row, threshold, owners, count, slopes);
    *value = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const Column& c = column[bin[i]];
      by_score[i] = score_gradient(loss, row[i], c, u[i]);
      by_quality[i] = quality_gradient(loss, row[i], c, u[i], score[i] - threshold[bin[i] - 1]);
      *value += row[i].value;
    }
  }

  template <typename T, typename Index>
  static void gradient(const Tensors& bins, const Tensor& slopes, const Tensor& place, const Tensor& by_score,
                       const Tensors& results) {
    const T *table = slopes.const_data_ptr<T>(), *own = by_score.const_data_ptr<T>();
    const int64_t* at = place.const_data_ptr<int64_t>();
    int64_t begin = 0;
    for (size_t l = 0; l < bins.size(); ++l) {
      use_large_pages(results[l]);  // before the first store to it
      const int64_t n = bins[l].numel();
      const Index* bin = static_cast<const Index*>(bins[l].const_data_ptr());
      T* out = results[l].mutable_data_ptr<T>();
      in_shares(n, [&](int64_t, int64_t from, int64_t to) {
        for (int64_t k = from; k < to; ++k) out[k] = table[bin[k]];
      });
      // after all scores: a positive's own gradient replaces that of its bin
      for (int64_t i = 0; i < place.numel(); ++i) {
        const int64_t k = at[i] - begin;
        if (k >= 0 && k < n) out[k] = own[i];
      }
      begin += n;
    }
  }
};

}  // namespace
}  // namespace detsearch::ap

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def("ap_loss_own(Tensor[] levels, Tensor positives) -> (Tensor own, Tensor place)");
  m.def(
      "ap_loss_bins(Tensor[] levels, Tensor own, Tensor ignored, Tensor knots, int steps) -> "
      "(Tensor[] bins, Tensor at, Tensor owner, Tensor totals)");
  m.def(
      "ap_loss_answer(Tensor totals, Tensor at, Tensor owner, Tensor own, Tensor quality, Tensor knots, int steps, "
      "bool through_denominator) -> (Tensor loss, Tensor slopes, Tensor by_score, Tensor by_quality)");
  m.def("ap_loss_gradient(Tensor[] bins, Tensor slopes, Tensor place, Tensor by_score) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { detsearch::ap::implement<detsearch::ap::Cpu>(m); }
