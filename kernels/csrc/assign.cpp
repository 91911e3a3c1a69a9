// HPS-Det's Algorithm 2 for a whole batch on the CPU, without a ground truth x prior matrix: candidates are found near
// each ground truth (grid.h), the k of lowest loss chosen (losses.h), conflicts settled, orphans served (orphans.h).

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>

#include "losses.h"
#include "orphans.h"

namespace detsearch {
namespace {

constexpr float kUnknown = -1.0f;  // a loss not computed yet

Place place_of(const Problem& problem, int64_t image, int64_t g) {
  return {image, problem.label[g], problem.truth[g]};
}

int64_t count_of(const Problem& problem, const Box& truth, int64_t level) {
  const int64_t row = problem.rows > 1 ? std::max<int64_t>(level, 0) : 0;
  return problem.counts[row * problem.bins + bin_of(truth, problem.edges + row * (problem.bins - 1), problem.bins)];
}

// A bound that about `count` of all candidates do not exceed, found with a histogram of the leading bits.
float usual_bound(const std::vector<float>& bound, size_t count) {
  constexpr int kBits = 20, kBins = 1 << 11;  // exponent and three bits of the mantissa of a float >= 0
  int32_t histogram[kBins] = {};
  for (const float value : bound) ++histogram[float_to_bits(positive(value)) >> kBits];
  size_t seen = 0;
  for (uint32_t bin = 0; bin < kBins; ++bin) {
    seen += histogram[bin];
    if (seen >= count) return bits_to_float(((bin + 1) << kBits) - 1);
  }
  return std::numeric_limits<float>::infinity();
}

// The `count` candidates of lowest loss (then lowest prior), unordered, into `best`.
void select(const Problem& problem, size_t count, const Found& found, std::vector<Choice>& best) {
  best.clear();
  const size_t all = found.candidates.size();
  if (all <= count) {  // all are chosen; what a loss is matters only where two rows want the same prior
    for (const Candidate& candidate : found.candidates) best.push_back({kUnknown, candidate.prior});
    return;
  }
  const float usual = usual_bound(found.bound, count);
  const auto offer = [&](size_t i) {
    if (best.size() == count && found.bound[i] > best.front().loss) return;
    const Choice choice{full_loss(problem, found, i), found.candidates[i].prior};
    if (best.size() < count) {
      best.push_back(choice);
      std::push_heap(best.begin(), best.end());
    } else if (choice < best.front()) {
      std::pop_heap(best.begin(), best.end());
      best.back() = choice;
      std::push_heap(best.begin(), best.end());
    }
  };
  for (size_t i = 0; i < all; ++i) {
    if (found.bound[i] <= usual) offer(i);
  }
  for (size_t i = 0; i < all; ++i) {
    if (found.bound[i] > usual) offer(i);
  }
}

// What the ground truths have chosen: slots[g] is the first of the row's choices, `kept` how many it still owns.
struct Chosen {
  std::vector<int64_t> slots;
  std::vector<Choice> choices;
  std::vector<int64_t> taken;  // choices of a row that are filled
  std::vector<int64_t> kept;
};

// Most candidates a row may choose: its largest count; the same for all, so that rows can be filled in parallel.
int64_t largest_count(const Problem& problem) {
  return *std::max_element(problem.counts, problem.counts + problem.rows * problem.bins);
}

void choose(const Problem& problem, Chosen& chosen, const std::vector<int64_t>& image_of) {
  const int64_t rows = static_cast<int64_t>(image_of.size()), widest = largest_count(problem);
  chosen.choices.resize(rows * widest);
  chosen.taken.assign(rows, 0);
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    Found found;
    std::vector<Choice> best;
    for (int64_t g = begin; g < end; ++g) {
      const Place place = place_of(problem, image_of[g], g);
      const int64_t level = find(problem, place, found);
      const size_t count = static_cast<size_t>(count_of(problem, place.box, level));
      if (found.candidates.size() > count) bound_all(problem, place, found);
      select(problem, count, found, best);
      std::copy(best.begin(), best.end(), chosen.choices.begin() + g * widest);
      chosen.taken[g] = static_cast<int64_t>(best.size());
    }
  });
}

// A prior that several rows of an image chose goes to the lowest loss, of equal ones to the lower row.
// matched holds slots of `choices` meanwhile, so that no second array of all priors is needed.
void settle(const Problem& problem, int64_t image, Chosen& chosen, int64_t begin, int64_t end, int64_t* matched,
            std::vector<int64_t>& kept) {
  const int64_t widest = largest_count(problem);
  const auto loss = [&](int64_t slot) {
    Choice& choice = chosen.choices[slot];
    if (choice.loss == kUnknown) choice.loss = loss_at(problem, place_of(problem, image, slot / widest), choice.prior);
    return choice.loss;
  };
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      if (holder >= 0 && !(loss(slot) < loss(holder))) continue;
      if (holder >= 0) --kept[holder / widest];
      holder = slot;
      ++kept[g];
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      // written once: the owner's own slot stands there until it is turned into its row
      if (holder == slot) holder = -2 - g;
    }
  }
  for (int64_t g = begin; g < end; ++g) {
    for (int64_t slot = g * widest; slot < g * widest + chosen.taken[g]; ++slot) {
      int64_t& holder = matched[chosen.choices[slot].prior];
      if (holder < -1) holder = -2 - holder;
    }
  }
}

// All candidates of a row by loss, then prior; looked up for the few rows that take part in serving orphans.
class Wishes {
 public:
  Wishes(const Problem& problem, int64_t image) : problem_(problem), image_(image) {}

  const std::vector<Choice>& of(int64_t g) {
    const auto [place, fresh] = known_.try_emplace(g);
    if (fresh) {
      const Place whose = place_of(problem_, image_, g);
      find(problem_, whose, found_);
      bound_all(problem_, whose, found_);
      for (size_t i = 0; i < found_.candidates.size(); ++i) {
        place->second.push_back({full_loss(problem_, found_, i), found_.candidates[i].prior});
      }
      std::sort(place->second.begin(), place->second.end());
    }
    return place->second;
  }

 private:
  const Problem& problem_;
  int64_t image_;
  Found found_;
  std::unordered_map<int64_t, std::vector<Choice>> known_;
};

void assign(const Problem& problem, int64_t* matched) {
  std::vector<int64_t> image_of;
  for (int64_t image = 0; image < problem.images; ++image) {
    image_of.insert(image_of.end(), problem.splits[image + 1] - problem.splits[image], image);
  }
  if (image_of.empty()) return;
  Chosen chosen;
  choose(problem, chosen, image_of);
  std::vector<int64_t> kept(image_of.size(), 0);
  torch::stable::parallel_for(0, problem.images, 1, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) {
      const int64_t begin = problem.splits[image], end = problem.splits[image + 1];
      int64_t* own = matched + image * problem.grid.priors;
      settle(problem, image, chosen, begin, end, own, kept);
      Wishes wishes(problem, image);
      serve(begin, end, chosen.taken, wishes, own, kept);
    }
  });
}

Tensor assign_topk(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
                   const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
                   const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes, double alpha,
                   double min_iou) {
  check_truth(splits, labels, classes);
  Problem problem{};
  problem.grid = read_grid(sizes, cell, strides, ranges, boxes.size(1));
  problem.scores = read_scores(logits, problem.grid, classes);
  problem.images = splits.size(0) - 1;
  problem.classes = classes;
  problem.boxes = data<Box>(boxes);
  problem.truth = data<Box>(truth);
  problem.label = data<int64_t>(labels);
  problem.splits = data<int64_t>(splits);
  problem.counts = data<int64_t>(counts);
  problem.edges = data<float>(edges);
  problem.rows = counts.size(0);
  problem.bins = counts.size(1);
  problem.alpha = static_cast<float>(alpha);
  problem.min_iou = static_cast<float>(min_iou);
  Tensor matched = torch::stable::new_empty(labels, {problem.images, problem.grid.priors});
  int64_t* out = static_cast<int64_t*>(matched.mutable_data_ptr());
  std::fill(out, out + problem.images * problem.grid.priors, int64_t{-1});
  assign(problem, out);
  return matched;
}

}  // namespace
}  // namespace detsearch

STABLE_TORCH_LIBRARY_FRAGMENT(detsearch, m) {
  m.def(
      "assign_topk(Tensor[] logits, Tensor boxes, Tensor truth, Tensor labels, Tensor splits, Tensor sizes, Tensor cell, "
      "Tensor strides, Tensor ranges, Tensor counts, Tensor edges, int classes, float alpha, float min_iou) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detsearch, CPU, m) { m.impl("assign_topk", TORCH_BOX(&detsearch::assign_topk)); }
