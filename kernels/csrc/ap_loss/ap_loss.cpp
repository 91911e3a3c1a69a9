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

// Fills the bins and keeps the bin of every score; whether no score is NaN.
template <typename T, typename Index>
bool fill(const BinFinder<T>& finder, const T* scores, int64_t n, Index* bin_of, std::vector<Bin>& bins) {
  const size_t size = bins.size();
  std::vector<std::vector<Bin>> parts(shares_of(n) - 1);  // of the shares after the first
  std::vector<char> valid(parts.size() + 1);  // not vector<bool>, whose elements share bytes: threads write them
  in_shares(n, [&](int64_t share, int64_t from, int64_t to) {
    if (share > 0) parts[share - 1].resize(size);
    Bin* part = share > 0 ? parts[share - 1].data() : bins.data();
    const T* mine = scores + from;
    Index* kept = bin_of + from;
    valid[share] = finder.find(mine, to - from, [=](int64_t k, uint32_t bin) {
      part[bin].sum += static_cast<double>(mine[k]);
      ++part[bin].count;
      kept[k] = static_cast<Index>(bin);
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

template <typename T>
struct Positives {
  std::vector<int64_t> index;
  std::vector<double> score, quality;

  // Whether they can be used: distinct predictions with finite scores, and qualities that are numbers.
  bool read(const T* scores, int64_t n, const int64_t* positives, const T* qualities, int64_t count) {
    index.assign(positives, positives + count);
    for (int64_t i = 0; i < count; ++i) {
      if (index[i] < 0 || index[i] >= n || qualities[i] != qualities[i]) return false;
      score.push_back(static_cast<double>(scores[index[i]]));
      quality.push_back(static_cast<double>(qualities[i]));
      if (!(std::fabs(score[i]) <= kFarthest)) return false;
    }
    std::vector<int64_t> ordered = index;
    // most callers pass them ascending, and the test is much cheaper than sorting
    if (!std::is_sorted(ordered.begin(), ordered.end())) std::sort(ordered.begin(), ordered.end());
    return std::adjacent_find(ordered.begin(), ordered.end()) == ordered.end();
  }
};

// The loss, and what backward needs.
template <typename T, typename Index>
struct Result {
  T* loss;
  Index* bins;    // of the scores
  T* slopes;      // gradient by a negative's score, of every bin
  T* by_score;    // positives'
  T* by_quality;  // positives'
};

// Thresholds in ascending order and what fell between them; bin b lies left of threshold b.
struct Binned {
  std::vector<double> at;
  std::vector<int32_t> owner;  // of thresholds: positive x steps + step
  std::vector<Bin> bins;
  std::vector<uint32_t> own_bin;  // the positives' bins
  // of each bin: by how much the positives weigh less than 1, and that times their scores
  std::vector<double> deficit, deficit_sum;
};

// False where a score is NaN.
template <typename T, typename Index>
bool sort_into_bins(const Loss& loss, const T* scores, int64_t n, const Positives<T>& positives, Index* bin_of,
                    Binned& result) {
  const int64_t rows = static_cast<int64_t>(positives.index.size()), steps = loss.merged.steps;
  std::vector<double> threshold(rows * steps);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < steps; ++k) threshold[i * steps + k] = positives.score[i] + loss.merged.offset[k];
  }
  const BinFinder<T> finder(threshold, n, result.at, result.owner);
  result.bins.resize(rows * steps + 1);
  result.deficit.resize(rows * steps + 1);
  result.deficit_sum.resize(rows * steps + 1);
  for (int64_t i = 0; i < rows; ++i) {
    // negatives have weight 1, so only the few positives need their weights subtracted
    const uint32_t bin = finder.bin_of(static_cast<T>(positives.score[i]));
    const double part = loss.others.value(positives.quality[i]);
    result.own_bin.push_back(bin);
    result.deficit[bin] += part;
    result.deficit_sum[bin] += part * positives.score[i];
  }
  return fill(finder, scores, n, bin_of, result.bins);
}

// The suffix sums at every threshold, in the order of owners.
std::vector<SuffixSums> suffix_sums_of(const Binned& binned) {
  const auto& [at, owner, bins, own_bin, deficit, deficit_sum] = binned;
  const int64_t count = static_cast<int64_t>(at.size());
  std::vector<SuffixSums> suffix_sums(count);
  SuffixSums p = {double(bins[count].count), 0, bins[count].count - deficit[count], 0};
  for (int64_t b = count - 1; b >= 0; --b) {
    if (b < count - 1) {
      const double gap = at[b + 1] - at[b], all = double(bins[b + 1].count), weighted = all - deficit[b + 1];
      // the scores right of the bin lie farther from this threshold by `gap`; those of the bin count from the
      // threshold. at_least_0: a sum minus count x threshold cancels, and rounding may leave less than nothing
      p.excess += p.count * gap + at_least_0(bins[b + 1].sum - all * at[b]);
      p.weighted_excess +=
          p.weighted_count * gap + at_least_0((bins[b + 1].sum - deficit_sum[b + 1]) - weighted * at[b]);
      p.count += all;
      p.weighted_count += weighted;
    }
    suffix_sums[owner[b]] = p;
  }
  return suffix_sums;
}

template <typename T>
std::vector<Row> rows_of(const Loss& loss, const std::vector<SuffixSums>& suffix_sums, const Positives<T>& positives) {
  std::vector<Row> rows;
  const SuffixSums* of = suffix_sums.data();
  for (const double quality : positives.quality) {
    Sums sums = {};
    for (int k = 0; k + 1 < loss.merged.steps; ++k) sums.add(loss.merged, k, of[k], of[k + 1]);
    rows.push_back(row_of(loss, sums, quality));
    of += loss.merged.steps;
  }
  return rows;
}

template <typename T, typename Index>
void write_results(const Loss& loss, const Binned& binned, const Positives<T>& positives, Result<T, Index> out) {
  const std::vector<Row> row = rows_of(loss, suffix_sums_of(binned), positives);
  const MergedKnots& merged = loss.merged;
  const int64_t count = static_cast<int64_t>(binned.at.size());
  std::vector<Column> column(count + 1);
  for (int64_t b = 0; b < count; ++b) {
    const int32_t i = binned.owner[b] / merged.steps, k = binned.owner[b] % merged.steps;
    // running sums: what the thresholds up to here change, so that a bin's value is read off
    Column& next = column[b + 1] = column[b];
    // with the slope before this threshold: the weight grows along the bin that ends here
    if (b > 0) next.weight += column[b].above * (binned.at[b] - binned.at[b - 1]);
    next.above += row[i].by_above * (merged.above[k] - (k ? merged.above[k - 1] : 0.0));
    next.rank += row[i].by_rank * (merged.rank[k] - (k ? merged.rank[k - 1] : 0.0));
    out.slopes[b] = static_cast<T>(column[b].above - column[b].rank);
  }
  out.slopes[count] = T(0);  // above every threshold nothing changes
  double value = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const Column& c = column[binned.own_bin[i]];
    const double quality = positives.quality[i], beyond = positives.score[i] - binned.at[binned.own_bin[i] - 1];
    out.by_score[i] = static_cast<T>(score_gradient(loss, row[i], c, quality));
    out.by_quality[i] = static_cast<T>(quality_gradient(loss, row[i], c, quality, beyond));
    value += row[i].value;
  }
  *out.loss = static_cast<T>(value);
}

template <typename T>
bool has_nan(const T* scores, int64_t n) {
  int saw_nan = 0;
  for (int64_t k = 0; k < n; ++k) saw_nan |= scores[k] != scores[k];
  return saw_nan != 0;
}

struct Cpu {
  template <typename T, typename Index>
  static Outputs forward(const Tensor& scores, const Tensor& positives, const Tensor& quality, const Loss& loss) {
    const int64_t n = scores.numel(), rows = positives.numel(), count = rows * loss.merged.steps;
    Tensor value = torch::stable::new_empty(scores, {}),
           bins = torch::stable::new_empty(scores, {n}, sizeof(Index) == 2 ? ScalarType::Short : ScalarType::Int),
           slopes = torch::stable::new_empty(scores, {count + 1}), by_score = torch::stable::new_empty(scores, {rows}),
           by_quality = torch::stable::new_empty(scores, {rows});
    use_large_pages(bins);
    const Result<T, Index> out = {value.mutable_data_ptr<T>(), static_cast<Index*>(bins.mutable_data_ptr()),
                                  slopes.mutable_data_ptr<T>(), by_score.mutable_data_ptr<T>(),
                                  by_quality.mutable_data_ptr<T>()};
    const T* s = scores.const_data_ptr<T>();
    Positives<T> checked;
    bool valid = checked.read(s, n, positives.const_data_ptr<int64_t>(), quality.const_data_ptr<T>(), rows);
    if (valid && rows) {
      Binned binned;
      valid = sort_into_bins(loss, s, n, checked, out.bins, binned);
      if (valid) write_results(loss, binned, checked, out);
    }
    if (rows == 0) {
      valid = !has_nan(s, n);
      std::fill(out.bins, out.bins + n, Index(0));  // backward looks the slope 0 up for all
      *out.loss = out.slopes[0] = T(0);
    }
    if (!valid) {  // the caller says what is wrong
      constexpr T nan = std::numeric_limits<T>::quiet_NaN();
      *out.loss = nan;
      std::fill(out.bins, out.bins + n, Index(0));
      std::fill(out.slopes, out.slopes + count + 1, nan);
      std::fill(out.by_score, out.by_score + rows, nan);
      std::fill(out.by_quality, out.by_quality + rows, nan);
    }
    return {value, bins, slopes, by_score, by_quality};
  }

  template <typename T, typename Index>
  static Tensor backward(const Tensor& positives, const Tensor& bins, const Tensor& slopes, const Tensor& by_score,
                         const Tensor& gradient) {
    const int64_t n = bins.numel(), count = slopes.numel();
    Tensor result = torch::stable::new_empty(slopes, {n});
    use_large_pages(result);
    T* out = result.mutable_data_ptr<T>();
    const T factor = *gradient.const_data_ptr<T>();
    std::vector<T> slope(slopes.const_data_ptr<T>(), slopes.const_data_ptr<T>() + count);
    for (T& x : slope) x *= factor;  // once a bin, not once a score
    const Index* bin = static_cast<const Index*>(bins.const_data_ptr());
    in_shares(n, [&](int64_t, int64_t from, int64_t to) {
      const T* table = slope.data();
      for (int64_t k = from; k < to; ++k) out[k] = table[bin[k]];
    });
    // after all scores: a positive's own gradient replaces that of its bin
    const int64_t* index = positives.const_data_ptr<int64_t>();
    const T* own = by_score.const_data_ptr<T>();
    for (int64_t i = 0; i < positives.numel(); ++i) {
      // a loss that is NaN still has a backward pass, with indices that may lie anywhere
      if (index[i] >= 0 && index[i] < n) out[index[i]] = own[i] * factor;
    }
    return result;
  }
};

}  // namespace
}  // namespace detsearch::ap

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def(
      "parameterized_ap_loss(Tensor scores, Tensor positives, Tensor quality, Tensor knots, int steps, "
      "bool through_denominator) -> (Tensor loss, Tensor bins, Tensor slopes, Tensor by_score, Tensor by_quality)");
  m.def(
      "parameterized_ap_loss_backward(Tensor positives, Tensor bins, Tensor slopes, Tensor by_score, Tensor gradient) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { detsearch::ap::implement<detsearch::ap::Cpu>(m); }
