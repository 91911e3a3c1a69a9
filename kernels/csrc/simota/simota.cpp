// SimOTA of a whole batch on the CPU, without a ground truth x prior matrix. detsearch_cli/slots/assigners/simota.py is
// the same in PyTorch and says what it does. Both choose alike but for costs that differ by rounding.
//
// How many positives a ground truth gets depends on the predictions of all candidates of the image. They are gathered
// once an image in blocks of neighbours; a block whose hull misses the ground truth is skipped as a whole. Class sums
// are computed only for pairs whose bound may still be among the lowest costs.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "matchers/batch.h"

namespace detsearch {
namespace {

constexpr int64_t kBlock = 64;  // candidates that are skipped together

struct Problem {
  Batch batch;
  std::vector<Scores> scores;  // by level
  const Box* boxes;            // predicted, images x priors
  const int64_t* label;
  int64_t classes;
  size_t top_k;
  float radius;
};

// Candidates of an image in the order of priors, their predicted boxes side by side, and the hull of every block.
struct Candidates {
  std::vector<int64_t> prior;
  std::vector<float> x1, y1, x2, y2;
  std::vector<Box> hull;

  void add(int64_t number, const Box& predicted) {
    // an empty box overlaps nothing; a NaN would make the hull of the block useless
    const Box box = finite(predicted) ? predicted : Box{0.0f, 0.0f, 0.0f, 0.0f};
    if (prior.size() % kBlock == 0) hull.push_back(box);
    Box& all = hull.back();
    all = {min_of(all.x1, box.x1), min_of(all.y1, box.y1), max_of(all.x2, box.x2), max_of(all.y2, box.y2)};
    prior.push_back(number);
    x1.push_back(box.x1);
    y1.push_back(box.y1);
    x2.push_back(box.x2);
    y2.push_back(box.y2);
  }
};

// A ground truth and a prior. own: the logit of the ground truth's class; bound: the cost is never lower.
struct Pair {
  int64_t prior;
  const float* logits;  // of the first class
  int64_t step;         // to the next class
  float own, bound;
};

struct PriorCost {
  float cost;
  int64_t prior;
  bool operator<(const PriorCost& other) const { return cost != other.cost ? cost < other.cost : prior < other.prior; }
};

float sum_of_classes(const float* logits, int64_t classes, int64_t step) {
  float lane[kLanes] = {};
  const int64_t whole = classes / kLanes * kLanes;
  const auto add = [&](int64_t start, int64_t count, int64_t apart) {
    for (int64_t i = 0; i < count; ++i) lane[i] += softplus(logits[(start + i) * apart]);
  };
  // 1 is passed as a constant: then neighbouring classes are loaded as one vector
  for (int64_t start = 0; start < whole; start += kLanes) step == 1 ? add(start, kLanes, 1) : add(start, kLanes, step);
  add(whole, classes - whole, step);
  return sum_of_lanes(lane);
}

class Image {
 public:
  Image(const Problem& problem, int64_t image, int64_t begin, int64_t end, int64_t* matched)
      : problem_(problem),
        grid_(problem.batch.grid),
        image_(image),
        begin_(begin),
        end_(end),
        matched_(matched),
        boxes_(problem.boxes + image * problem.batch.grid.priors) {}

  void assign() {
    gather();
    if (candidates_.prior.empty()) return;
    for (int64_t g = begin_; g < end_; ++g) {
      if (!finite(truth(g))) continue;
      choose(g);
      for (const PriorCost& one : chosen_) take(one.prior, g);
    }
    // last: a contested prior goes to the lowest cost of all ground truths, also of those that did not choose it
    for (const int64_t prior : contested_) matched_[prior] = cheapest(prior);
  }

 private:
  const Box& truth(int64_t g) const { return problem_.batch.truth[g]; }

  // Calls each(level, row, column, whether both) for the cells whose centre is inside the box or near its middle.
  template <typename Each>
  void visit(const Box& box, const Each& each) const {
    for (int64_t i = 0; i < grid_.count(); ++i) {
      const Level& level = grid_.levels[i];
      const float reach = problem_.radius * level.stride;
      const Span columns = columns_near(level, box, reach), rows = rows_near(level, box, reach);
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        for (int64_t column = columns.begin; column < columns.end; ++column) {
          const float x = centre(column, level.stride), y = centre(row, level.stride);
          const bool inside = depth(box, x, y) > 0.0f, near = central(box, x, y, reach);
          if (inside || near) each(i, row, column, inside && near);
        }
      }
    }
  }

  // The candidates of all ground truths of the image.
  void gather() {
    // marked first, because boxes overlap and a candidate must be listed once and in the order of priors
    std::vector<bool> is_candidate(grid_.priors);
    for (int64_t g = begin_; g < end_; ++g) {
      if (!finite(truth(g))) continue;
      visit(truth(g), [&](int64_t i, int64_t row, int64_t column, bool) {
        is_candidate[grid_.levels[i].prior(row, column, 0)] = true;
      });
    }
    for (const Level& level : grid_.levels) {
      for (int64_t cell = level.first; cell < level.first + level.count(); cell += level.shapes) {
        if (!is_candidate[cell]) continue;
        for (int64_t prior = cell; prior < cell + level.shapes; ++prior) candidates_.add(prior, boxes_[prior]);
      }
    }
  }

  float overlap_with(int64_t prior, int64_t g) const {
    return finite(boxes_[prior]) ? iou(boxes_[prior], truth(g)) : 0.0f;
  }

  Pair pair_of(int64_t prior, int64_t g, const PriorPosition& position, float overlap) const {
    const Scores& scores = problem_.scores[position.level];
    const float* logits = scores.at(image_, position.row, position.column, position.shape);
    const float own = logits[problem_.label[g] * scores.class_stride];
    return {prior, logits, scores.class_stride, own, cost_bound(own, overlap)};
  }

  float cost(const Pair& pair) const {
    return cost_of(pair.bound, pair.own, sum_of_classes(pair.logits, problem_.classes, pair.step));
  }

  PriorPosition position(int64_t prior) const {
    const int64_t number = grid_.level_of(prior);
    return position_of(grid_.levels[number], number, prior);
  }

  // Writes the priors that g chooses to chosen_.
  void choose(int64_t g) {
    pairs_.clear();
    overlaps_.clear();
    visit(truth(g), [&](int64_t i, int64_t row, int64_t column, bool both) {
      if (!both) return;
      for (int64_t shape = 0; shape < grid_.levels[i].shapes; ++shape) {
        const int64_t prior = grid_.levels[i].prior(row, column, shape);
        overlaps_.push_back(overlap_with(prior, g));
        pairs_.push_back(pair_of(prior, g, {i, row, column, shape}, overlaps_.back()));
      }
    });
    const size_t count = dynamic_k(truth(g));
    chosen_.clear();
    const size_t near = pairs_.size();
    if (near < count) {
      // all near ones are chosen, whatever they cost; the others come after them
      chosen_.reserve(count);
      for (const Pair& pair : pairs_) chosen_.push_back({0.0f, pair.prior});
      pair_with_the_rest(g);
      choose_lowest(count - near);
    } else {
      choose_lowest(count);
    }
  }

  // The sum of the highest IoUs with predictions, rounded down, at least 1. overlaps_ holds some of them.
  size_t dynamic_k(const Box& box) {
    const size_t most_of = problem_.top_k;
    // the near candidates are some of all: the highest IoUs of all are no lower than theirs
    float least_of = 0.0f;
    if (overlaps_.size() >= most_of) {
      std::nth_element(overlaps_.begin(), overlaps_.begin() + (most_of - 1), overlaps_.end(), std::greater<float>());
      least_of = overlaps_[most_of - 1];
    }
    overlaps_.clear();  // the blocks below hold the near ones again
    // front() is the lowest of the heap
    const auto enough = [&](float overlap) {
      return overlaps_.size() < most_of ? overlap >= least_of && overlap > 0.0f : overlap > overlaps_.front();
    };
    for (size_t block = 0; block < candidates_.hull.size(); ++block) {
      const Box& hull = candidates_.hull[block];
      if (!(min_of(hull.x2, box.x2) > max_of(hull.x1, box.x1) && min_of(hull.y2, box.y2) > max_of(hull.y1, box.y1)))
        continue;
      float overlap[kBlock];
      const int64_t count = measure(block, box, overlap);
      for (int64_t i = 0; i < count; ++i) {
        if (!enough(overlap[i])) continue;
        if (overlaps_.size() == most_of) {
          std::pop_heap(overlaps_.begin(), overlaps_.end(), std::greater<float>());
          overlaps_.pop_back();
        }
        overlaps_.push_back(overlap[i]);
        std::push_heap(overlaps_.begin(), overlaps_.end(), std::greater<float>());
      }
    }
    double sum = 0.0;  // float64, so that the order of summation does not decide what is rounded down
    for (const float overlap : overlaps_) sum += overlap;
    return std::max<size_t>(1, static_cast<size_t>(sum));
  }

  // IoUs of the predictions of a block; returns how many there are.
  int64_t measure(size_t block, const Box& box, float* overlap) const {
    const int64_t first = static_cast<int64_t>(block) * kBlock;
    const int64_t count = std::min<int64_t>(kBlock, static_cast<int64_t>(candidates_.prior.size()) - first);
    const float *x1 = candidates_.x1.data() + first, *y1 = candidates_.y1.data() + first;
    const float *x2 = candidates_.x2.data() + first, *y2 = candidates_.y2.data() + first;
    for (int64_t i = 0; i < count; ++i) overlap[i] = iou({x1[i], y1[i], x2[i], y2[i]}, box);
    return count;
  }

  // Replaces pairs_ by the pairs of g with all other candidates of the image.
  void pair_with_the_rest(int64_t g) {
    const std::vector<Pair> near = std::move(pairs_);
    pairs_.clear();  // a vector that was moved from may hold anything
    // both lists ascend by prior, so one walk tells which candidates are near
    size_t next = 0;
    for (const int64_t prior : candidates_.prior) {
      if (next < near.size() && near[next].prior == prior) {
        ++next;
        continue;
      }
      pairs_.push_back(pair_of(prior, g, position(prior), overlap_with(prior, g)));
    }
  }

  // Adds the `count` pairs of lowest cost, then lowest prior, to chosen_.
  void choose_lowest(size_t count) {
    count = std::min(count, pairs_.size());
    if (count == 0) return;
    // the lowest bounds first: their costs rule out most others before any classes are summed
    std::nth_element(pairs_.begin(), pairs_.begin() + (count - 1), pairs_.end(),
                     [](const Pair& a, const Pair& b) { return a.bound < b.bound; });
    std::vector<PriorCost> best;
    for (const Pair& pair : pairs_) {
      // `>`: at an equal cost the lower prior wins, so the pair must be compared
      if (best.size() == count && pair.bound > best.front().cost) continue;
      const PriorCost one{cost(pair), pair.prior};
      if (best.size() == count) {
        if (!(one < best.front())) continue;
        std::pop_heap(best.begin(), best.end());
        best.pop_back();
      }
      best.push_back(one);
      std::push_heap(best.begin(), best.end());
    }
    chosen_.insert(chosen_.end(), best.begin(), best.end());
  }

  void take(int64_t prior, int64_t g) {
    constexpr int64_t kContested = -3;  // apart from kBackground, or a third choice would take the prior as free
    int64_t& holder = matched_[prior];
    if (holder >= 0) contested_.push_back(prior);
    holder = holder == kBackground ? g : kContested;
  }

  // The ground truth of the image with the lowest cost for a prior, of equal ones the first.
  int64_t cheapest(int64_t prior) const {
    const PriorPosition at = position(prior);
    const Level& level = grid_.levels[at.level];
    const float x = centre(at.column, level.stride), y = centre(at.row, level.stride);
    // once: the sum over the classes does not depend on the ground truth
    const float sum = sum_of_classes(problem_.scores[at.level].at(image_, at.row, at.column, at.shape),
                                     problem_.classes, problem_.scores[at.level].class_stride);
    int64_t best = kBackground;
    bool best_outside = true;
    float lowest_cost = 0.0f;
    for (int64_t g = begin_; g < end_; ++g) {
      const Box& box = truth(g);
      if (!finite(box)) continue;
      const bool outside = !(depth(box, x, y) > 0.0f && central(box, x, y, problem_.radius * level.stride));
      if (best >= 0 && outside && !best_outside) continue;  // near comes before cheap, as in choose()
      const Pair pair = pair_of(prior, g, at, overlap_with(prior, g));
      const float own_cost = cost_of(pair.bound, pair.own, sum);
      if (best >= 0 && outside == best_outside && !(own_cost < lowest_cost)) continue;
      best = g;
      best_outside = outside;
      lowest_cost = own_cost;
    }
    return best;
  }

  const Problem& problem_;
  const Grid& grid_;
  const int64_t image_, begin_, end_;
  int64_t* matched_;
  const Box* boxes_;
  Candidates candidates_;
  std::vector<Pair> pairs_;
  std::vector<float> overlaps_;
  std::vector<PriorCost> chosen_;
  std::vector<int64_t> contested_;
};

Tensor simota(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
              const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
              const Tensor& ranges, int64_t classes, int64_t top_k, double radius) {
  STD_TORCH_CHECK(top_k >= 1, "top_k must be at least 1, got ", top_k);
  check_truth(splits, labels, classes);
  Problem problem{};
  problem.batch = read_batch(truth, splits, sizes, cell, strides, ranges, boxes.size(1));
  problem.scores = read_scores(logits, problem.batch.grid, classes);
  problem.boxes = data<Box>(boxes);
  problem.label = data<int64_t>(labels);
  problem.classes = classes;
  problem.top_k = static_cast<size_t>(top_k);
  problem.radius = static_cast<float>(radius);
  return for_images(problem.batch, splits, [&](int64_t image, int64_t begin, int64_t end, int64_t* matched) {
    Image(problem, image, begin, end, matched).assign();
  });
}

}  // namespace
}  // namespace detsearch

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def(
      "simota(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, Tensor cell, "
      "Tensor strides, Tensor ranges, int classes, int top_k, float radius) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { m.impl("simota", TORCH_BOX(&detsearch::simota)); }
