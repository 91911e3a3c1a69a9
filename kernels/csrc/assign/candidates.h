// The candidates of a ground truth and their losses on the CPU.

#pragma once

#include <limits>
#include <vector>

#include "assign/blocks.h"
#include "assign/loss.h"
#include "assign/runs.h"

namespace detsearch {

struct Problem {
  Grid grid;
  const Blocks* blocks;        // of priors that do not tile, else none
  std::vector<Scores> scores;  // by level
  bool joined_levels;          // the scores of all levels are one (B, A, C)
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

// One ground truth, with the image it belongs to.
struct GroundTruth {
  int64_t image, label;
  Box box;
};

// The candidates of one ground truth. One object serves many ground truths, so that its memory is allocated once.
struct Candidates {
  std::vector<int32_t> prior, near;
  std::vector<float> overlap;  // IoU of its predicted box and the ground truth
  // numbers of the candidates whose losses are computed, and what follows from each
  std::vector<int32_t> shortlist;
  std::vector<const float*> logit;  // of the ground truth's class
  std::vector<float> own, bound;
};

// Class scores of a prior: of its first class, and the step to the next.
struct ClassScores {
  const float* first;
  int64_t step;
};

inline ClassScores class_scores(const Problem& problem, int64_t image, int32_t prior) {
  if (problem.joined_levels) {
    const Scores& all = problem.scores[0];
    return {all.first + image * all.image_stride + prior * all.shape_stride, all.class_stride};
  }
  const int64_t i = problem.grid.level_of(prior);
  const Level& level = problem.grid.levels[i];
  // 32 bits: a division of 64 bits takes several times as long
  const uint32_t inside = static_cast<uint32_t>(prior - level.first), shapes = static_cast<uint32_t>(level.shapes);
  const uint32_t cell = inside / shapes, width = static_cast<uint32_t>(level.width);
  return {problem.scores[i].at(image, cell / width, cell % width, inside % shapes), problem.scores[i].class_stride};
}

// Fills candidates.prior.
inline void find_candidates(const Problem& problem, const GroundTruth& gt, Candidates& candidates) {
  candidates.prior.clear();
  const Box* boxes = problem.boxes + gt.image * problem.grid.priors;
  const auto run = [&](int64_t prior, int64_t step, int64_t count) {
    const size_t before = candidates.prior.size();
    candidates.prior.resize(before + count);
    int32_t* out = candidates.prior.data() + before;
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int32_t>(prior + i * step);
      __builtin_prefetch(boxes + prior + i * step);  // the memory answers while more candidates are found
    }
  };
  if (problem.blocks) return problem.blocks->visit(gt.box, problem.min_iou, candidates.near, run);
  visit_runs(problem.grid, gt.box, problem.min_iou, run);
}

// How many positives a ground truth asks for.
inline int64_t count_of(const Problem& problem, const Box& truth, Candidates& candidates) {
  int64_t row = 0;
  if (problem.rows > 1) {
    const int64_t level = problem.blocks ? problem.blocks->best_level(truth, problem.min_iou, candidates.near)
                                         : best_level(problem.grid, truth, problem.min_iou);
    row = std::max<int64_t>(level, 0);
  }
  return problem.counts[row * problem.bins + bin_of(truth, problem.edges + row * (problem.bins - 1), problem.bins)];
}

// Fills candidates.overlap.
inline void measure_overlaps(const Problem& problem, const GroundTruth& gt, Candidates& candidates) {
  // gathered first: the second loop then reads neighbours and becomes vectors; 256 boxes stay in the first-level cache
  constexpr size_t kChunk = 256;
  float x1[kChunk], y1[kChunk], x2[kChunk], y2[kChunk];
  const Box* boxes = problem.boxes + gt.image * problem.grid.priors;
  const size_t count = candidates.prior.size();
  candidates.overlap.resize(count);
  for (size_t begin = 0; begin < count; begin += kChunk) {
    const size_t length = count - begin < kChunk ? count - begin : kChunk;
    const int32_t* prior = candidates.prior.data() + begin;
    for (size_t i = 0; i < length; ++i) {
      const Box& box = boxes[prior[i]];
      x1[i] = box.x1;
      y1[i] = box.y1;
      x2[i] = box.x2;
      y2[i] = box.y2;
    }
    const Box truth = gt.box;  // a copy, which a store to `overlap` cannot change
    float* overlap = candidates.overlap.data() + begin;
    for (size_t i = 0; i < length; ++i) overlap[i] = iou({x1[i], y1[i], x2[i], y2[i]}, truth);
  }
}

// Fills candidates.own and candidates.bound of the candidates in candidates.shortlist.
inline void bound_shortlist(const Problem& problem, const GroundTruth& gt, Candidates& candidates) {
  const size_t count = candidates.shortlist.size();
  candidates.logit.resize(count);
  candidates.own.resize(count);
  candidates.bound.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const ClassScores classes = class_scores(problem, gt.image, candidates.prior[candidates.shortlist[i]]);
    candidates.logit[i] = classes.first + gt.label * classes.step;
    // the logits lie far from each other: the memory answers while the next address is computed
    __builtin_prefetch(candidates.logit[i]);
  }
  // a second loop: by now the logits asked for above have arrived
  float* own = candidates.own.data();
  float* bound = candidates.bound.data();
  for (size_t i = 0; i < count; ++i) {
    own[i] = *candidates.logit[i];
    bound[i] = candidates.overlap[candidates.shortlist[i]];
  }
  const float alpha = problem.alpha;  // a copy, for the same reason as above: the stores must not seem to change it
  for (size_t i = 0; i < count; ++i) bound[i] = bound_of(own[i], bound[i], alpha);
}

template <typename Read>
float sum_of_classes(int64_t classes, const Read& read) {
  float lane[kLanes] = {}, remainder[kLanes];
  const int64_t full = classes / kLanes * kLanes;
  for (int64_t start = 0; start < full; start += kLanes) {
    for (int i = 0; i < kLanes; ++i) lane[i] += negative_focal(read(start + i));
  }
  if (full < classes) {
    std::fill(remainder, remainder + kLanes, -std::numeric_limits<float>::infinity());  // p = 0: adds 0
    for (int64_t i = full; i < classes; ++i) remainder[i - full] = read(i);
    for (int i = 0; i < kLanes; ++i) lane[i] += negative_focal(remainder[i]);
  }
  return sum_of_lanes(lane);
}

inline float sum_of_classes(const Problem& problem, int64_t image, int32_t prior) {
  const auto [first, step] = class_scores(problem, image, prior);
  // the step 1 is a constant here: then neighbouring classes are loaded as one vector
  if (step == 1) return sum_of_classes(problem.classes, [first = first](int64_t i) { return first[i]; });
  return sum_of_classes(problem.classes, [first = first, step = step](int64_t i) { return first[i * step]; });
}

// The loss of candidate i of the shortlist.
inline float full_loss(const Problem& problem, const GroundTruth& gt, const Candidates& candidates, size_t i) {
  const float sum = sum_of_classes(problem, gt.image, candidates.prior[candidates.shortlist[i]]);
  return loss_of(candidates.bound[i], candidates.own[i], sum);
}

// The loss of one prior for a ground truth; rounds as full_loss does.
inline float loss_at(const Problem& problem, const GroundTruth& gt, int32_t prior) {
  const ClassScores classes = class_scores(problem, gt.image, prior);
  const float own = classes.first[gt.label * classes.step];
  const float overlap = iou(problem.boxes[gt.image * problem.grid.priors + prior], gt.box);
  return loss_of(bound_of(own, overlap, problem.alpha), own, sum_of_classes(problem, gt.image, prior));
}

}  // namespace detsearch
