// The losses of a ground truth's candidates on the CPU.

#pragma once

#include <limits>
#include <vector>

#include "blocks.h"
#include "runs.h"

namespace detsearch {

struct Problem {
  Grid grid;
  const Blocks* blocks;        // of priors that do not tile, else none
  std::vector<Scores> scores;  // by level
  bool whole;                  // the scores of all levels are one (B, A, C)
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

// The candidates of one ground truth, and memory that is kept between ground truths.
struct Found {
  std::vector<int32_t> prior, near;
  std::vector<float> overlap;  // IoU of its predicted box and the ground truth
  // of the candidates that are looked at
  std::vector<int32_t> looked;
  std::vector<const float*> logit;  // of the ground truth's class
  std::vector<float> own, bound;
};

// Class scores of a prior: of its first class, and the step to the next.
struct Classes {
  const float* first;
  int64_t step;
};

inline Classes classes_of(const Problem& problem, int64_t image, int32_t prior) {
  if (problem.whole) {
    const Scores& all = problem.scores[0];
    return {all.first + image * all.of_image + prior * all.of_shape, all.of_class};
  }
  const int64_t i = problem.grid.level_of(prior);
  const Level& level = problem.grid.levels[i];
  // 32 bits: a division of 64 takes several times as long
  const uint32_t inside = static_cast<uint32_t>(prior - level.first), shapes = static_cast<uint32_t>(level.shapes);
  const uint32_t cell = inside / shapes, width = static_cast<uint32_t>(level.width);
  return {problem.scores[i].at(image, cell / width, cell % width, inside % shapes), problem.scores[i].of_class};
}

// Fills found.prior.
inline void find(const Problem& problem, const Place& place, Found& found) {
  found.prior.clear();
  const Box* boxes = problem.boxes + place.image * problem.grid.priors;
  const auto run = [&](int64_t prior, int64_t step, int64_t count) {
    const size_t before = found.prior.size();
    found.prior.resize(before + count);
    int32_t* out = found.prior.data() + before;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int32_t>(prior + i * step);
      __builtin_prefetch(boxes + prior + i * step);  // the memory answers while others are found
    }
  };
  if (problem.blocks) return problem.blocks->visit(place.box, problem.min_iou, found.near, run);
  visit_runs(problem.grid, place.box, problem.min_iou, run);
}

// How many positives a ground truth asks for.
inline int64_t count_of(const Problem& problem, const Box& truth, Found& found) {
  int64_t row = 0;
  if (problem.rows > 1) {
    const int64_t level = problem.blocks ? problem.blocks->best_level(truth, problem.min_iou, found.near)
                                         : best_level(problem.grid, truth, problem.min_iou);
    row = std::max<int64_t>(level, 0);
  }
  return problem.counts[row * problem.bins + bin_of(truth, problem.edges + row * (problem.bins - 1), problem.bins)];
}

// Fills found.overlap.
inline void overlap_all(const Problem& problem, const Place& place, Found& found) {
  constexpr size_t kChunk = 256;
  float x1[kChunk], y1[kChunk], x2[kChunk], y2[kChunk];
  const Box* boxes = problem.boxes + place.image * problem.grid.priors;
  const size_t count = found.prior.size();
  found.overlap.resize(count);
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t length = count - begin < kChunk ? count - begin : kChunk;
    const int32_t* prior = found.prior.data() + begin;
    for (size_t i = 0; i < length; ++i) {
      const Box& box = boxes[prior[i]];
      x1[i] = box.x1;
      y1[i] = box.y1;
      x2[i] = box.x2;
      y2[i] = box.y2;
    }
    const Box truth = place.box;
    float* overlap = found.overlap.data() + begin;
    for (size_t i = 0; i < length; ++i) overlap[i] = iou({x1[i], y1[i], x2[i], y2[i]}, truth);
  }
}

// Fills found.own and found.bound of the candidates in found.looked.
inline void bound_looked(const Problem& problem, const Place& place, Found& found) {
  const size_t count = found.looked.size();
  found.logit.resize(count);
  found.own.resize(count);
  found.bound.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const Classes classes = classes_of(problem, place.image, found.prior[found.looked[i]]);
    found.logit[i] = classes.first + place.label * classes.step;
    // they lie far from each other: the memory answers while the next is found
    __builtin_prefetch(found.logit[i]);
  }
  float* own = found.own.data();
  float* bound = found.bound.data();
  for (size_t i = 0; i < count; ++i) {
    own[i] = *found.logit[i];
    bound[i] = found.overlap[found.looked[i]];
  }
  const float alpha = problem.alpha;
  for (size_t i = 0; i < count; ++i) bound[i] = bound_of(own[i], bound[i], alpha);
}

template <typename Read>
float sum_of_classes(int64_t classes, const Read& read) {
  float lane[kLanes] = {}, rest[kLanes];
  const int64_t whole = classes / kLanes * kLanes;
  for (int64_t start = 0; start < whole; start += kLanes) {
    for (int i = 0; i < kLanes; ++i) lane[i] += away(read(start + i));
  }
  if (whole < classes) {
    std::fill(rest, rest + kLanes, -std::numeric_limits<float>::infinity());  // adds 0
    for (int64_t i = whole; i < classes; ++i) rest[i - whole] = read(i);
    for (int i = 0; i < kLanes; ++i) lane[i] += away(rest[i]);
  }
  return sum_of_lanes(lane);
}

inline float sum_of_classes(const Problem& problem, int64_t image, int32_t prior) {
  const auto [first, step] = classes_of(problem, image, prior);
  // apart, because neighbours are loaded as one vector
  if (step == 1) return sum_of_classes(problem.classes, [first = first](int64_t i) { return first[i]; });
  return sum_of_classes(problem.classes, [first = first, step = step](int64_t i) { return first[i * step]; });
}

// The loss of the candidate that is looked at as number i.
inline float full_loss(const Problem& problem, const Place& place, const Found& found, size_t i) {
  const float sum = sum_of_classes(problem, place.image, found.prior[found.looked[i]]);
  return loss_of(found.bound[i], found.own[i], sum);
}

// The loss of one prior for a ground truth; rounds as full_loss does.
inline float loss_at(const Problem& problem, const Place& place, int32_t prior) {
  const Classes classes = classes_of(problem, place.image, prior);
  const float own = classes.first[place.label * classes.step];
  const float overlap = iou(problem.boxes[place.image * problem.grid.priors + prior], place.box);
  return loss_of(bound_of(own, overlap, problem.alpha), own, sum_of_classes(problem, place.image, prior));
}

}  // namespace detsearch
