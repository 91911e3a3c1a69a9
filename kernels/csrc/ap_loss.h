// What the CPU and CUDA parameterized AP losses compute alike, in float64: the functions f, and one positive's part
// of Eq. 6 from its sums over all predictions. Source: Tao et al. 2021, Eqs. 6 and 7.

#pragma once

#include "numeric.h"

#include <torch/headeronly/util/Exception.h>

namespace detsearch::ap {

constexpr int kMostKnots = 33;
constexpr int64_t kShortBins = 65536;  // with fewer thresholds, a score's bin is kept in 2 bytes
constexpr double kFarthest = 1e12;  // beyond, a score plus 1 is no longer told from the score

// f of Eq. 7. A knot belongs to the segment right of it; 1 and beyond are flat, and so is what lies below 0.
struct Curve {
  int knots;
  double x[kMostKnots], y[kMostKnots];

  DETSEARCH_INLINE int passed(double at) const {
    int k = 0;
    while (k < knots && x[k] <= at) ++k;
    return k;
  }

  DETSEARCH_INLINE double slope(double at) const {
    const int k = passed(at);
    return k == 0 || k == knots ? 0.0 : (y[k] - y[k - 1]) / (x[k] - x[k - 1]);
  }

  DETSEARCH_INLINE double value(double at) const {
    const int k = passed(at);
    if (k == 0) return y[0];
    return k == knots ? y[knots - 1] : y[k - 1] + (at - x[k - 1]) * ((y[k] - y[k - 1]) / (x[k] - x[k - 1]));
  }
};

// The knots of theta_2 (predictions above) and theta_4 (the rank) over the difference of two scores, merged, with
// both slopes on [offset[k], offset[k + 1]).
struct Ladder {
  int steps;
  double offset[2 * kMostKnots], above[2 * kMostKnots], rank[2 * kMostKnots];
};

// Eq. 6's functions in its order, and what follows from them.
struct Loss {
  Curve hit, others, row;  // theta_1, theta_3, theta_5
  Ladder ladder;
  double above_own, rank_own;  // theta_2 and theta_4 of a prediction against itself, which the sums leave out
  double positives;
  bool through_denominator;
};

// At a threshold t: the scores right of it, counted, and the sum of min(s, highest threshold) - t; the same with
// the weight 1 - f(l; theta_3).
struct Prefix {
  double count, excess, weighted_count, weighted_excess;
};

// Sums over all predictions j, for a positive i: f(s_j - s_i; theta_2) (1 - f(l_j; theta_3)), f(s_j - s_i; theta_4),
// and their derivatives by s_j.
struct Sums {
  double above, rank, above_slope, rank_slope;

  DETSEARCH_INLINE void add(const Ladder& ladder, int k, const Prefix& left, const Prefix& right) {
    above += ladder.above[k] * (left.weighted_excess - right.weighted_excess);
    rank += ladder.rank[k] * (left.excess - right.excess);
    above_slope += ladder.above[k] * (left.weighted_count - right.weighted_count);
    rank_slope += ladder.rank[k] * (left.count - right.count);
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
    if (curve.knots == kMostKnots) break;
    curve.x[curve.knots] = knots[2 * k];
    curve.y[curve.knots++] = knots[2 * k + 1];
    which += knots[2 * k] == 1.0;
  }
  const Curve &above = curves[1], &rank = curves[3];
  Loss loss = {curves[0], curves[2], curves[4], {}, above.value(0.5), rank.value(0.5), double(positives), false};
  loss.through_denominator = through_denominator;
  Ladder& ladder = loss.ladder;
  for (int a = 0, r = 0; a < above.knots || r < rank.knots; ++ladder.steps) {
    const double next_above = a < above.knots ? above.x[a] : 2.0, next_rank = r < rank.knots ? rank.x[r] : 2.0;
    const double x = next_above < next_rank ? next_above : next_rank;
    a += next_above == x;
    r += next_rank == x;
    ladder.offset[ladder.steps] = 2.0 * x - 1.0;
    ladder.above[ladder.steps] = 0.5 * above.slope(x);
    ladder.rank[ladder.steps] = 0.5 * rank.slope(x);
  }
  return loss;
}

// Number of thresholds. steps: the caller's count of distinct knots of theta_2 and theta_4.
inline int64_t check(const Loss& loss, int64_t steps, int64_t positives) {
  STD_TORCH_CHECK(steps == loss.ladder.steps, "theta_2 and theta_4 have ", loss.ladder.steps, " knots, got ", steps);
  STD_TORCH_CHECK(positives * steps < (int64_t(1) << 31), "at most 2^31 thresholds, got ", positives * steps);
  return positives * steps;
}

}  // namespace detsearch::ap
