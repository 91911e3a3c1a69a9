// The losses of a ground truth's candidates on the CPU. Candidates are ranked by a bound that needs one class; the sum
// over all classes is taken for those only whose bound may still be among the best.

#pragma once

#include <vector>

#include "grid.h"

namespace detsearch {

struct Problem {
  Grid grid;
  std::vector<Scores> scores;  // by level
  int64_t images, classes;
  const Box* boxes;  // predicted, images x priors
  const Box* truth;
  const int64_t* label;
  const int64_t* splits;
  const int64_t* counts;  // rows x bins
  const float* edges;     // rows x (bins - 1), padded with infinity
  int64_t rows, bins;
  float alpha, min_iou;
};

// A ground truth.
struct Place {
  int64_t image, label;
  Box box;
};

struct Candidate {
  const float* logits;  // of its first class
  int32_t prior;
};

// The candidates of one ground truth, and memory that is kept between ground truths.
struct Found {
  std::vector<Candidate> candidates;
  std::vector<float> own, overlap, bound;  // by candidate
  Across across;
};

// Fills found.candidates; returns the level that fits best, -1 for anchors without a candidate.
inline int64_t find(const Problem& problem, const Place& place, Found& found) {
  found.candidates.clear();
  const Box* boxes = problem.boxes + place.image * problem.grid.priors;
  const auto push = [&](int64_t i, int64_t row, int64_t column, int64_t shape) {
    const float* logits = problem.scores[i].at(place.image, row, column, shape);
    const int64_t prior = problem.grid.levels[i].prior(row, column, shape);
    // its own logit and its box lie far from the last one's: the memory answers while others are looked for
    __builtin_prefetch(logits + place.label * problem.scores[i].of_class);
    __builtin_prefetch(boxes + prior);
    found.candidates.push_back({logits, static_cast<int32_t>(prior)});
  };
  return visit_candidates(problem.grid, place.box, problem.min_iou, found.across, push);
}

template <typename Read>
float sum_of_classes(int64_t classes, const Read& read) {
  float lane[kLanes] = {};
  const int64_t whole = classes / kLanes * kLanes;
  for (int64_t start = 0; start < whole; start += kLanes) {
    for (int i = 0; i < kLanes; ++i) lane[i] += away(read(start + i));
  }
  for (int64_t i = whole; i < classes; ++i) lane[i - whole] += away(read(i));
  return sum_of_lanes(lane);
}

inline float sum_of_classes(const float* logits, int64_t classes, int64_t step) {
  // apart, because neighbours are loaded as one vector
  if (step == 1) return sum_of_classes(classes, [&](int64_t i) { return logits[i]; });
  return sum_of_classes(classes, [&](int64_t i) { return logits[i * step]; });
}

// Bounds of all candidates, into found.bound; own logits stay in found.own.
inline void bound_all(const Problem& problem, const Place& place, Found& found) {
  const size_t count = found.candidates.size();
  found.own.resize(count);
  found.overlap.resize(count);
  found.bound.resize(count);
  const Box* boxes = problem.boxes + place.image * problem.grid.priors;
  size_t begin = 0;
  while (begin < count) {  // candidates come level by level
    const int64_t i = problem.grid.level_of(found.candidates[begin].prior);
    const Level& level = problem.grid.levels[i];
    const int64_t own_class = place.label * problem.scores[i].of_class, last = level.first + level.count();
    size_t end = begin;
    while (end < count && found.candidates[end].prior < last && found.candidates[end].prior >= level.first) {
      found.own[end] = found.candidates[end].logits[own_class];
      found.overlap[end] = iou(boxes[found.candidates[end].prior], place.box);
      ++end;
    }
    begin = end;
  }
  const float* own = found.own.data();
  const float* overlap = found.overlap.data();
  float* bound = found.bound.data();
  for (size_t i = 0; i < count; ++i) bound[i] = bound_of(own[i], overlap[i], problem.alpha);
}

inline float full_loss(const Problem& problem, const Found& found, size_t i) {
  const Candidate& candidate = found.candidates[i];
  const int64_t step = problem.scores[problem.grid.level_of(candidate.prior)].of_class;
  return loss_of(found.bound[i], found.own[i], sum_of_classes(candidate.logits, problem.classes, step));
}

// The loss of one prior for a ground truth; rounds as full_loss does.
inline float loss_at(const Problem& problem, const Place& place, int32_t prior) {
  const int64_t i = problem.grid.level_of(prior);
  const Level& level = problem.grid.levels[i];
  const int64_t shape = (prior - level.first) % level.shapes, cell = (prior - level.first) / level.shapes;
  const float* logits = problem.scores[i].at(place.image, cell / level.width, cell % level.width, shape);
  const float own = logits[place.label * problem.scores[i].of_class];
  const float overlap = iou(problem.boxes[place.image * problem.grid.priors + prior], place.box);
  const float sum = sum_of_classes(logits, problem.classes, problem.scores[i].of_class);
  return loss_of(bound_of(own, overlap, problem.alpha), own, sum);
}

}  // namespace detsearch
