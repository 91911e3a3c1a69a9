// What the CPU and CUDA parameterized AP losses compute alike, in float64: the functions f, and one positive's part
// of Eq. 6 from its sums over all predictions. Source: Tao et al. 2021, Eqs. 6 and 7.

#pragma once

#include <torch/headeronly/util/Exception.h>

#include "common/numeric.h"

namespace detsearch::ap {

constexpr int kMaxKnots = 33;
constexpr int64_t kShortBins = 65536;  // with fewer thresholds, a score's bin is kept in 2 bytes
constexpr double kFarthest = 1e12;     // beyond, a score plus 1 is no longer told from the score

// f of Eq. 7. A knot belongs to the segment right of it; 1 and beyond are flat, and so is what lies below 0.
struct Curve {
  int knots;
  double x[kMaxKnots], y[kMaxKnots];

  DETSEARCH_INLINE int knots_passed(double at) const {
    int k = 0;
    while (k < knots && x[k] <= at) ++k;
    return k;
  }

  DETSEARCH_INLINE double slope(double at) const {
    const int k = knots_passed(at);
    // a knot belongs to the segment right of it, as in the reference; the last one to the flat part
    return k == 0 || k == knots ? 0.0 : (y[k] - y[k - 1]) / (x[k] - x[k - 1]);
  }

  DETSEARCH_INLINE double value(double at) const {
    const int k = knots_passed(at);
    if (k == 0) return y[0];
    return k == knots ? y[knots - 1] : y[k - 1] + (at - x[k - 1]) * ((y[k] - y[k - 1]) / (x[k] - x[k - 1]));
  }
};

// The knots of theta_2 (predictions above) and theta_4 (the rank) over the difference of two scores, merged, so that
// one pass over the thresholds serves both. above[k] and rank[k] are the slopes on [offset[k], offset[k + 1]).
struct MergedKnots {
  int steps;
  double offset[2 * kMaxKnots], above[2 * kMaxKnots], rank[2 * kMaxKnots];
};

// Eq. 6's functions in its order, and what follows from them.
struct Loss {
  Curve hit, others, row;  // theta_1, theta_3, theta_5
  MergedKnots merged;
  double above_own, rank_own;  // theta_2 and theta_4 of a prediction against itself, which the sums leave out
  double positives;
  bool through_denominator;
};

// At a threshold t: how many scores s lie right of it, the sum of min(s, highest threshold) - t over them, and both
// again with the weight 1 - f(l; theta_3).
struct SuffixSums {
  double count, excess, weighted_count, weighted_excess;
};

// Sums over all predictions j, for a positive i: f(s_j - s_i; theta_2) (1 - f(l_j; theta_3)), f(s_j - s_i; theta_4),
// and their derivatives by s_j.
struct Sums {
  double above, rank, above_slope, rank_slope;

  DETSEARCH_INLINE void add(const MergedKnots& merged, int k, const SuffixSums& left, const SuffixSums& right) {
    above += merged.above[k] * (left.weighted_excess - right.weighted_excess);
    rank += merged.rank[k] * (left.excess - right.excess);
    above_slope += merged.above[k] * (left.weighted_count - right.weighted_count);
    rank_slope += merged.rank[k] * (left.count - right.count);
  }
};

// A positive's term of Eq. 6 and the loss's derivatives: by the sum above, by the rank (negated), and by the
// positive's own score and quality as far as they act in its own row.
struct Row {
  double value, by_above, by_rank, by_score, by_quality;
};

DETSEARCH_INLINE double at_least_0(double x) { return x < 0.0 ? 0.0 : x; }

DETSEARCH_INLINE Row row_of(const Loss& loss, const Sums& sums, double quality) {
  const double weight = 1.0 - loss.others.value(quality), scale = loss.row.value(quality);
  // the prediction itself is taken out of its sums; what rounding leaves below 0 would turn the sign of a gradient
  const double above = at_least_0(sums.above - weight * loss.above_own);
  const double rank = 1.0 + at_least_0(sums.rank - loss.rank_own);
  const double ratio = above / rank;
  Row row;
  row.value = -(loss.hit.value(quality) - ratio * scale) / loss.positives;
  row.by_above = scale / (loss.positives * rank);
  row.by_rank = loss.through_denominator ? row.by_above * ratio : 0.0;
  row.by_score = row.by_rank * sums.rank_slope - row.by_above * sums.above_slope;
  row.by_quality = -(loss.hit.slope(quality) - ratio * loss.row.slope(quality)) / loss.positives;
  return row;
}

// Over all rows, in one bin of scores: the slopes of the loss by a score there, and the derivative by the weight of
// a score at the bin's left threshold.
struct Column {
  double above, rank, weight;
};

// A positive's gradients: its row's, and its part as a prediction in every row.
DETSEARCH_INLINE double score_gradient(const Loss& loss, const Row& row, const Column& column, double quality) {
  return row.by_score + (1.0 - loss.others.value(quality)) * column.above - column.rank;
}

DETSEARCH_INLINE double quality_gradient(const Loss& loss, const Row& row, const Column& column, double quality,
                                         double beyond_threshold) {
  const double weight = column.weight + column.above * beyond_threshold - row.by_above * loss.above_own;
  return row.by_quality - loss.others.slope(quality) * weight;
}

// A positive's score where thresholds can be made of it, else 0: thresholds that are NaN could not be sorted. The
// answer is NaN then.
DETSEARCH_INLINE double usable(double score) { return std::fabs(score) <= kFarthest ? score : 0.0; }

// The least T not below a threshold: comparing a score with it is comparing the score with the threshold.
DETSEARCH_INLINE void edge_of(double threshold, double* edge) { *edge = threshold; }
DETSEARCH_INLINE void edge_of(double threshold, float* edge) {
  const float nearest = static_cast<float>(threshold);
  *edge = nearest < threshold ? nextafterf(nearest, INFINITY) : nearest;
}

// Reads knots (K, 2): five curves one after the other, each from x = 0 to x = 1.
inline Loss read(const double* knots, int64_t count, int64_t positives, bool through_denominator) {
  Curve curves[5] = {};
  int which = 0;
  for (int64_t k = 0; k < count && which < 5; ++k) {
    Curve& curve = curves[which];
    if (curve.knots == kMaxKnots) break;  // the Python face refuses this; here it must not write beyond the arrays
    curve.x[curve.knots] = knots[2 * k];
    curve.y[curve.knots++] = knots[2 * k + 1];
    which += knots[2 * k] == 1.0;
  }
  const Curve &above = curves[1], &rank = curves[3];
  Loss loss = {curves[0], curves[2], curves[4], {}, above.value(0.5), rank.value(0.5), double(positives), false};
  loss.through_denominator = through_denominator;
  MergedKnots& merged = loss.merged;
  for (int a = 0, r = 0; a < above.knots || r < rank.knots; ++merged.steps) {
    // 2 lies beyond every knot: a list that has ended is never the next
    const double next_above = a < above.knots ? above.x[a] : 2.0, next_rank = r < rank.knots ? rank.x[r] : 2.0;
    const double x = next_above < next_rank ? next_above : next_rank;
    a += next_above == x;
    r += next_rank == x;
    merged.offset[merged.steps] = 2.0 * x - 1.0;
    // 0.5: a difference in [-1, 1] is mapped to x in [0, 1]
    merged.above[merged.steps] = 0.5 * above.slope(x);
    merged.rank[merged.steps] = 0.5 * rank.slope(x);
  }
  return loss;
}

// Number of thresholds. steps: the caller's count of distinct knots of theta_2 and theta_4.
inline int64_t check(const Loss& loss, int64_t steps, int64_t positives) {
  STD_TORCH_CHECK(steps == loss.merged.steps, "theta_2 and theta_4 have ", loss.merged.steps, " knots, got ", steps);
  STD_TORCH_CHECK(positives * steps < (int64_t(1) << 31), "at most 2^31 thresholds, got ", positives * steps);
  return positives * steps;
}

}  // namespace detsearch::ap
