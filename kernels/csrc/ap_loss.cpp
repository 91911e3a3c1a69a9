// Parameterized AP loss on the CPU without the positives x predictions matrix and without sorting the scores.
//
// f is piecewise linear, so over all predictions its sum is, per segment, slope x (excess over the segment's left
// threshold - excess over its right one). Each score is therefore dropped once into the bin between two
// thresholds s_i + knot; suffix sums over bins answer every positive, and a score's gradient depends on its bin alone.

#include "ap_loss_grid.h"
#include "ap_loss_operators.h"
#include "fresh.h"

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace detsearch::ap {
namespace {

constexpr int64_t kGrain = 65536;  // scores that are worth a thread

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
bool fill(const Grid<T>& grid, const T* scores, int64_t n, Index* bin_of, std::vector<Bin>& bins) {
  const size_t size = bins.size();
  std::vector<std::vector<Bin>> parts(shares_of(n) - 1);  // of the shares after the first
  std::vector<char> sound(parts.size() + 1);
  in_shares(n, [&](int64_t share, int64_t from, int64_t to) {
    if (share > 0) parts[share - 1].resize(size);
    Bin* part = share > 0 ? parts[share - 1].data() : bins.data();
    const T* mine = scores + from;
    Index* kept = bin_of + from;
    sound[share] = grid.find(mine, to - from, [=](int64_t k, uint32_t bin) {
      part[bin].sum += static_cast<double>(mine[k]);
      ++part[bin].count;
      kept[k] = static_cast<Index>(bin);
    });
  });
  for (const std::vector<Bin>& part : parts) {
    for (size_t b = 0; b < size; ++b) {
      bins[b].sum += part[b].sum;
      bins[b].count += part[b].count;
    }
  }
  return std::find(sound.begin(), sound.end(), 0) == sound.end();
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
  std::vector<int32_t> owner;          // of thresholds: positive x steps + step
  std::vector<Bin> bins;
  std::vector<uint32_t> own;           // the positives' bins
  std::vector<double> less, less_sum;  // what positives weigh less than 1, and that times their scores
};

// False where a score is NaN.
template <typename T, typename Index>
bool sort_into_bins(const Loss& loss, const T* scores, int64_t n, const Positives<T>& positives, Index* bin_of,
                    Binned& result) {
  const int64_t rows = static_cast<int64_t>(positives.index.size()), steps = loss.ladder.steps;
  std::vector<double> threshold(rows * steps);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t k = 0; k < steps; ++k) threshold[i * steps + k] = positives.score[i] + loss.ladder.offset[k];
  }
  const Grid<T> grid(threshold, n, result.at, result.owner);
  result.bins.resize(rows * steps + 1);
  result.less.resize(rows * steps + 1);
  result.less_sum.resize(rows * steps + 1);
  for (int64_t i = 0; i < rows; ++i) {
    const uint32_t bin = grid.bin_of(static_cast<T>(positives.score[i]));
    const double part = loss.others.value(positives.quality[i]);
    result.own.push_back(bin);
    result.less[bin] += part;
    result.less_sum[bin] += part * positives.score[i];
  }
  return fill(grid, scores, n, bin_of, result.bins);
}

// By owner.
std::vector<Prefix> prefixes_of(const Binned& binned) {
  const auto& [at, owner, bins, own, less, less_sum] = binned;
  const int64_t count = static_cast<int64_t>(at.size());
  std::vector<Prefix> prefix(count);
  Prefix p = {double(bins[count].count), 0, bins[count].count - less[count], 0};
  for (int64_t b = count - 1; b >= 0; --b) {
    if (b < count - 1) {
      const double gap = at[b + 1] - at[b], all = double(bins[b + 1].count), weighted = all - less[b + 1];
      p.excess += p.count * gap + at_least_0(bins[b + 1].sum - all * at[b]);
      p.weighted_excess +=
          p.weighted_count * gap + at_least_0((bins[b + 1].sum - less_sum[b + 1]) - weighted * at[b]);
      p.count += all;
      p.weighted_count += weighted;
    }
    prefix[owner[b]] = p;
  }
  return prefix;
}

template <typename T>
std::vector<Row> rows_of(const Loss& loss, const std::vector<Prefix>& prefix, const Positives<T>& positives) {
  std::vector<Row> rows;
  const Prefix* of = prefix.data();
  for (const double quality : positives.quality) {
    Sums sums = {};
    for (int k = 0; k + 1 < loss.ladder.steps; ++k) sums.add(loss.ladder, k, of[k], of[k + 1]);
    rows.push_back(row_of(loss, sums, quality));
    of += loss.ladder.steps;
  }
  return rows;
}

template <typename T, typename Index>
void give(const Loss& loss, const Binned& binned, const Positives<T>& positives, Result<T, Index> out) {
  const std::vector<Row> row = rows_of(loss, prefixes_of(binned), positives);
  const Ladder& ladder = loss.ladder;
  const int64_t count = static_cast<int64_t>(binned.at.size());
  std::vector<Column> column(count + 1);
  for (int64_t b = 0; b < count; ++b) {
    const int32_t i = binned.owner[b] / ladder.steps, k = binned.owner[b] % ladder.steps;
    Column& next = column[b + 1] = column[b];
    if (b > 0) next.weight += column[b].above * (binned.at[b] - binned.at[b - 1]);
    next.above += row[i].by_above * (ladder.above[k] - (k ? ladder.above[k - 1] : 0.0));
    next.rank += row[i].by_rank * (ladder.rank[k] - (k ? ladder.rank[k - 1] : 0.0));
    out.slopes[b] = static_cast<T>(column[b].above - column[b].rank);
  }
  out.slopes[count] = T(0);  // above every threshold nothing changes
  double value = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const Column& c = column[binned.own[i]];
    const double quality = positives.quality[i], beyond = positives.score[i] - binned.at[binned.own[i] - 1];
    out.by_score[i] = static_cast<T>(score_gradient(loss, row[i], c, quality));
    out.by_quality[i] = static_cast<T>(quality_gradient(loss, row[i], c, quality, beyond));
    value += row[i].value;
  }
  *out.loss = static_cast<T>(value);
}

template <typename T>
bool has_nan(const T* scores, int64_t n) {
  int bad = 0;
  for (int64_t k = 0; k < n; ++k) bad |= scores[k] != scores[k];
  return bad != 0;
}

struct Cpu {
  template <typename T, typename Index>
  static Outputs forward(const Tensor& scores, const Tensor& positives, const Tensor& quality, const Loss& loss) {
    const int64_t n = scores.numel(), rows = positives.numel(), count = rows * loss.ladder.steps;
    Tensor value = torch::stable::new_empty(scores, {}),
           bins = torch::stable::new_empty(scores, {n}, sizeof(Index) == 2 ? ScalarType::Short : ScalarType::Int),
           slopes = torch::stable::new_empty(scores, {count + 1}), by_score = torch::stable::new_empty(scores, {rows}),
           by_quality = torch::stable::new_empty(scores, {rows});
    fresh(bins);
    const Result<T, Index> out = {value.mutable_data_ptr<T>(), static_cast<Index*>(bins.mutable_data_ptr()),
                                  slopes.mutable_data_ptr<T>(), by_score.mutable_data_ptr<T>(),
                                  by_quality.mutable_data_ptr<T>()};
    const T* s = scores.const_data_ptr<T>();
    Positives<T> known;
    bool sound = known.read(s, n, positives.const_data_ptr<int64_t>(), quality.const_data_ptr<T>(), rows);
    if (sound && rows) {
      Binned binned;
      sound = sort_into_bins(loss, s, n, known, out.bins, binned);
      if (sound) give(loss, binned, known, out);
    }
    if (rows == 0) {
      sound = !has_nan(s, n);
      std::fill(out.bins, out.bins + n, Index(0));
      *out.loss = out.slopes[0] = T(0);
    }
    if (!sound) {  // the caller says what is wrong
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
    fresh(result);
    T* out = result.mutable_data_ptr<T>();
    const T factor = *gradient.const_data_ptr<T>();
    std::vector<T> slope(slopes.const_data_ptr<T>(), slopes.const_data_ptr<T>() + count);
    for (T& x : slope) x *= factor;
    const Index* bin = static_cast<const Index*>(bins.const_data_ptr());
    in_shares(n, [&](int64_t, int64_t from, int64_t to) {
      const T* table = slope.data();
      for (int64_t k = from; k < to; ++k) out[k] = table[bin[k]];
    });
    const int64_t* index = positives.const_data_ptr<int64_t>();
    const T* own = by_score.const_data_ptr<T>();
    for (int64_t i = 0; i < positives.numel(); ++i) {
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
