// HPS-Det's Algorithm 2 for a whole batch on the CPU, without a ground truth x prior matrix.
//
// Candidates of a box lie near it: of every level and prior shape, only the cells whose prior touches the box are
// looked at, and the overlap of a whole row of cells shares its vertical part. Candidates are ranked by a bound
// that needs one class; the sum over all classes is taken for those only whose bound may still be among the k best.

#include "assign.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace detsearch {
namespace {

using torch::stable::Tensor;

struct Level {
  int64_t height, width, shapes;  // cells, and priors of a cell
  int64_t first;                  // prior
  float stride;
  const Box* cell;  // boxes of a cell's priors, relative to its centre
  float low, high;  // range of distances, points only
  const float* logits;
  int64_t of_image, of_row, of_column, of_shape, of_class;  // strides of logits, in elements
};

struct Problem {
  std::vector<Level> levels;
  int64_t images, priors, classes;
  const Box* boxes;  // predicted, images x priors
  const Box* truth;
  const int64_t* label;
  const int64_t* splits;
  const int64_t* counts;  // rows x bins
  const float* edges;     // rows x (bins - 1), padded with infinity
  int64_t rows, bins;
  bool points;
  float alpha, min_iou;
};

struct Candidate {
  const float* logits;  // of its first class
  int32_t prior;
  float bound;
};

// A ground truth.
struct Place {
  int64_t image, label;
  Box box;
};

constexpr float kUnknown = -1.0f;  // a loss not computed yet

struct Choice {
  float loss;
  int32_t prior;
  bool operator<(const Choice& other) const {
    return loss < other.loss || (loss == other.loss && prior < other.prior);
  }
};

// Memory of one thread, kept between ground truths.
struct Scratch {
  std::vector<Candidate> found;
  std::vector<float> left, right;  // of the priors of a row, and what they share with the box
  std::vector<float> shared, width;
  std::vector<float> own, overlap, bound;
  std::vector<Choice> best;
  std::vector<int32_t> later;
};

// First and last cell along an axis whose centre lies in (low, high); centres are at (i + .5) * stride.
std::pair<int64_t, int64_t> cells_between(float low, float high, float stride, int64_t cells) {
  const double scale = 1.0 / stride;
  // one cell more on each side than the division says: rounding must not lose a candidate
  const double begin = std::floor(low * scale - 0.5), end = std::ceil(high * scale - 0.5) + 1.0;
  const double count = static_cast<double>(cells);
  if (!(begin < end)) return {0, 0};  // not a number, too
  return {static_cast<int64_t>(std::clamp(begin, 0.0, count)), static_cast<int64_t>(std::clamp(end, 0.0, count))};
}

// Adds a candidate and asks for what its bound will need: its own logit and its predicted box lie far from the last
// one's, and the memory answers while other candidates are looked for.
void push(const Problem& problem, const Level& level, const Place& place, int64_t row, int64_t column, int64_t shape,
          Scratch& scratch) {
  const float* logits = level.logits + place.image * level.of_image + row * level.of_row +
                        column * level.of_column + shape * level.of_shape;
  const int64_t prior = level.first + (row * level.width + column) * level.shapes + shape;
  __builtin_prefetch(logits + place.label * level.of_class);
  __builtin_prefetch(problem.boxes + place.image * problem.priors + prior);
  scratch.found.push_back({logits, static_cast<int32_t>(prior), 0.0f});
}

// Priors of one shape on one level whose IoU exceeds min_iou; returns the highest IoU, or -1.
float anchors_of(const Problem& problem, const Level& level, int64_t shape, const Place& place,
                 Scratch& scratch) {
  const Box& cell = level.cell[shape];
  const Box& truth = place.box;
  const float own = area(cell), wanted = area(truth);
  // the highest IoU two boxes of these areas can have
  if (least(own, wanted) <= problem.min_iou * most(own, wanted) * 0.999f) return -1.0f;
  const auto [left, right] = cells_between(truth.x1 - cell.x2, truth.x2 - cell.x1, level.stride, level.width);
  const auto [top, bottom] = cells_between(truth.y1 - cell.y2, truth.y2 - cell.y1, level.stride, level.height);
  const int64_t columns = right - left;
  if (columns <= 0 || bottom <= top) return -1.0f;
  scratch.shared.resize(columns);
  scratch.width.resize(columns);
  for (int64_t i = 0; i < columns; ++i) {
    const float x = (static_cast<float>(left + i) + 0.5f) * level.stride;
    const float x1 = x + cell.x1, x2 = x + cell.x2;
    scratch.width[i] = positive(x2 - x1);
    scratch.shared[i] = positive(least(x2, truth.x2) - most(x1, truth.x1));
  }
  scratch.overlap.resize(columns);
  float highest = -1.0f;
  for (int64_t row = top; row < bottom; ++row) {
    const float y = (static_cast<float>(row) + 0.5f) * level.stride;
    const float y1 = y + cell.y1, y2 = y + cell.y2;
    const float height = positive(y2 - y1), shared = positive(least(y2, truth.y2) - most(y1, truth.y1));
    const float* widths = scratch.width.data();
    const float* across = scratch.shared.data();
    float* overlap = scratch.overlap.data();
    float top_of_row = 0.0f;
    for (int64_t i = 0; i < columns; ++i) {
      overlap[i] = ratio(across[i] * shared, widths[i] * height, wanted);
      top_of_row = most(top_of_row, overlap[i]);
    }
    if (top_of_row <= problem.min_iou) continue;
    highest = most(highest, top_of_row);
    for (int64_t i = 0; i < columns; ++i) {
      if (overlap[i] > problem.min_iou) push(problem, level, place, row, left + i, shape, scratch);
    }
  }
  return highest;
}

// Points strictly inside the box whose largest distance to a side is in the level's range (low, high].
void points_of(const Problem& problem, const Level& level, const Place& place, Scratch& scratch) {
  const Box& truth = place.box;
  const auto [left, right] = cells_between(truth.x1, truth.x2, level.stride, level.width);
  const auto [top, bottom] = cells_between(truth.y1, truth.y2, level.stride, level.height);
  for (int64_t row = top; row < bottom; ++row) {
    const float y = (static_cast<float>(row) + 0.5f) * level.stride;
    const float above = y - truth.y1, below = truth.y2 - y;
    for (int64_t column = left; column < right; ++column) {
      const float x = (static_cast<float>(column) + 0.5f) * level.stride;
      const float before = x - truth.x1, after = truth.x2 - x;
      const float nearest = least(least(before, after), least(above, below));
      const float farthest = most(most(before, after), most(above, below));
      if (nearest > 0.0f && farthest > level.low && farthest <= level.high) {
        push(problem, level, place, row, column, 0, scratch);
      }
    }
  }
}

// Fills scratch.found; returns the best level, -1 for anchors without a candidate.
int64_t find(const Problem& problem, const Place& place, Scratch& scratch) {
  scratch.found.clear();
  const int64_t levels = static_cast<int64_t>(problem.levels.size());
  if (problem.points) {
    for (const Level& level : problem.levels) points_of(problem, level, place, scratch);
    const float half = most(place.box.x2 - place.box.x1, place.box.y2 - place.box.y1) / 2;
    int64_t best = 0;
    while (best + 1 < levels && half > problem.levels[best].high) ++best;
    return best;
  }
  int64_t best = -1;
  float highest = -1.0f;
  for (int64_t i = 0; i < levels; ++i) {
    for (int64_t shape = 0; shape < problem.levels[i].shapes; ++shape) {
      const float found = anchors_of(problem, problem.levels[i], shape, place, scratch);
      if (found > highest) {
        highest = found;
        best = i;
      }
    }
  }
  return best;
}

int64_t count_of(const Problem& problem, const Box& truth, int64_t level) {
  const int64_t row = problem.rows > 1 ? std::max<int64_t>(level, 0) : 0;
  const float aspect = (truth.y2 - truth.y1) / (truth.x2 - truth.x1);
  const float* edges = problem.edges + row * (problem.bins - 1);
  int64_t bin = 0;
  for (int64_t i = 0; i + 1 < problem.bins; ++i) bin += aspect > edges[i];
  return problem.counts[row * problem.bins + bin];
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

float sum_of_classes(const float* logits, int64_t classes, int64_t step) {
  // apart, because neighbours are loaded as one vector
  if (step == 1) return sum_of_classes(classes, [&](int64_t i) { return logits[i]; });
  return sum_of_classes(classes, [&](int64_t i) { return logits[i * step]; });
}

const Level& level_of(const Problem& problem, int32_t prior) {
  size_t i = problem.levels.size() - 1;
  while (problem.levels[i].first > prior) --i;
  return problem.levels[i];
}

// Bounds of all candidates, into scratch.bound; own logits stay in scratch.own.
void bound_all(const Problem& problem, const Place& place, Scratch& scratch) {
  const size_t count = scratch.found.size();
  scratch.own.resize(count);
  scratch.overlap.resize(count);
  scratch.bound.resize(count);
  const Box* boxes = problem.boxes + place.image * problem.priors;
  size_t begin = 0;
  while (begin < count) {  // candidates come level by level
    const Level& level = level_of(problem, scratch.found[begin].prior);
    const int64_t last = level.first + level.height * level.width * level.shapes;
    size_t end = begin;
    while (end < count && scratch.found[end].prior < last && scratch.found[end].prior >= level.first) {
      scratch.own[end] = scratch.found[end].logits[place.label * level.of_class];
      scratch.overlap[end] = iou(boxes[scratch.found[end].prior], place.box);
      ++end;
    }
    begin = end;
  }
  const float* own = scratch.own.data();
  const float* overlap = scratch.overlap.data();
  float* bound = scratch.bound.data();
  for (size_t i = 0; i < count; ++i) bound[i] = bound_of(own[i], overlap[i], problem.alpha);
}

float full_loss(const Problem& problem, const Scratch& scratch, size_t i) {
  const Candidate& candidate = scratch.found[i];
  const Level& level = level_of(problem, candidate.prior);
  return loss_of(scratch.bound[i], scratch.own[i], sum_of_classes(candidate.logits, problem.classes, level.of_class));
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

// The `count` candidates of lowest loss (then lowest prior), unordered, into scratch.best.
void select(const Problem& problem, size_t count, Scratch& scratch) {
  std::vector<Choice>& best = scratch.best;
  best.clear();
  const size_t found = scratch.found.size();
  if (found <= count) {  // all are chosen; what a loss is matters only where two rows want the same prior
    for (const Candidate& candidate : scratch.found) best.push_back({kUnknown, candidate.prior});
    return;
  }
  const float usual = usual_bound(scratch.bound, count);
  const auto offer = [&](size_t i) {
    if (best.size() == count && scratch.bound[i] > best.front().loss) return;
    const Choice choice{full_loss(problem, scratch, i), scratch.found[i].prior};
    if (best.size() < count) {
      best.push_back(choice);
      std::push_heap(best.begin(), best.end());
    } else if (choice < best.front()) {
      std::pop_heap(best.begin(), best.end());
      best.back() = choice;
      std::push_heap(best.begin(), best.end());
    }
  };
  for (size_t i = 0; i < found; ++i) {
    if (scratch.bound[i] <= usual) offer(i);
  }
  for (size_t i = 0; i < found; ++i) {
    if (scratch.bound[i] > usual) offer(i);
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
    Scratch scratch;
    for (int64_t g = begin; g < end; ++g) {
      const Place place{image_of[g], problem.label[g], problem.truth[g]};
      const int64_t level = find(problem, place, scratch);
      const size_t count = static_cast<size_t>(count_of(problem, place.box, level));
      if (scratch.found.size() > count) bound_all(problem, place, scratch);
      select(problem, count, scratch);
      std::copy(scratch.best.begin(), scratch.best.end(), chosen.choices.begin() + g * widest);
      chosen.taken[g] = static_cast<int64_t>(scratch.best.size());
    }
  });
}

// The loss of one prior for a row; rounds as full_loss does.
float loss_at(const Problem& problem, int64_t image, int64_t g, int32_t prior) {
  const Level& level = level_of(problem, prior);
  const int64_t shape = (prior - level.first) % level.shapes, cell = (prior - level.first) / level.shapes;
  const float* logits = level.logits + image * level.of_image + cell / level.width * level.of_row +
                        cell % level.width * level.of_column + shape * level.of_shape;
  const float own = logits[problem.label[g] * level.of_class];
  const float overlap = iou(problem.boxes[image * problem.priors + prior], problem.truth[g]);
  return loss_of(bound_of(own, overlap, problem.alpha), own, sum_of_classes(logits, problem.classes, level.of_class));
}

// A prior that several rows of an image chose goes to the lowest loss, of equal ones to the lower row.
// matched holds slots of `choices` meanwhile, so that no second array of all priors is needed.
void settle(const Problem& problem, int64_t image, Chosen& chosen, int64_t begin, int64_t end, int64_t* matched,
            std::vector<int64_t>& kept) {
  const int64_t widest = largest_count(problem);
  const auto loss = [&](int64_t slot) {
    Choice& choice = chosen.choices[slot];
    if (choice.loss == kUnknown) choice.loss = loss_at(problem, image, slot / widest, choice.prior);
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
      const Place whose{image_, problem_.label[g], problem_.truth[g]};
      find(problem_, whose, scratch_);
      bound_all(problem_, whose, scratch_);
      for (size_t i = 0; i < scratch_.found.size(); ++i) {
        place->second.push_back({full_loss(problem_, scratch_, i), scratch_.found[i].prior});
      }
      std::sort(place->second.begin(), place->second.end());
    }
    return place->second;
  }

 private:
  const Problem& problem_;
  int64_t image_;
  Scratch scratch_;
  std::unordered_map<int64_t, std::vector<Choice>> known_;
};

constexpr int kRounds = 8;

// One request of every orphan: its candidate of lowest loss that is background or whose owner has another. A prior
// of the background, and an owner, grant the lowest loss. True when anything was granted.
bool grant(const std::vector<int64_t>& orphans, Wishes& wishes, int64_t* matched, std::vector<int64_t>& kept) {
  struct Request {
    float loss;
    int64_t g;
    int32_t prior;
  };
  std::map<std::pair<bool, int64_t>, Request> granted;  // by (is an owner, the owner or the prior)
  for (const int64_t g : orphans) {
    for (const Choice& wish : wishes.of(g)) {
      const int64_t holder = matched[wish.prior];
      if (holder >= 0 && kept[holder] < 2) continue;
      const auto key = holder < 0 ? std::pair(false, static_cast<int64_t>(wish.prior)) : std::pair(true, holder);
      const auto [place, fresh] = granted.try_emplace(key, Request{wish.loss, g, wish.prior});
      if (!fresh && wish.loss < place->second.loss) place->second = {wish.loss, g, wish.prior};
      break;
    }
  }
  for (const auto& [key, request] : granted) {
    matched[request.prior] = request.g;
    kept[request.g] = 1;
    if (key.first) --kept[key.second];
  }
  return !granted.empty();
}

// Augmenting paths: an orphan takes a prior, its owner moves to another of its own candidates, and so on until
// somebody ends at a prior that is to spare (Berge 1957).
void augment(const std::vector<int64_t>& orphans, Wishes& wishes, int64_t* matched, std::vector<int64_t>& kept) {
  std::unordered_set<int64_t> closed;
  for (const int64_t orphan : orphans) {
    std::unordered_map<int32_t, int64_t> seeker;            // prior -> who asks for it
    std::unordered_map<int64_t, int32_t> through{{orphan, -1}};  // who asks -> what it owns
    std::deque<int64_t> queue{orphan};
    int32_t end = -1;
    while (!queue.empty() && end < 0) {
      const int64_t asker = queue.front();
      queue.pop_front();
      for (const Choice& wish : wishes.of(asker)) {
        if (!seeker.try_emplace(wish.prior, asker).second) continue;
        const int64_t holder = matched[wish.prior];
        if (holder < 0 || kept[holder] >= 2) {
          end = wish.prior;
          break;
        }
        if (!through.contains(holder) && !closed.contains(holder)) {
          through[holder] = wish.prior;
          queue.push_back(holder);
        }
      }
    }
    if (end < 0) {  // nobody here can move, now or later: never search it again
      for (const auto& [asker, prior] : through) closed.insert(asker);
      continue;
    }
    if (matched[end] >= 0) --kept[matched[end]];
    kept[orphan] = 1;
    while (end >= 0) {
      const int64_t asker = seeker[end];
      matched[end] = asker;
      end = through[asker];
    }
  }
}

// Rows begin..end of an image that chose something and lost it all get a positive wherever that is possible.
void serve(const Problem& problem, int64_t image, int64_t begin, int64_t end, const Chosen& chosen, int64_t* matched,
           std::vector<int64_t>& kept) {
  const auto orphans = [&] {
    std::vector<int64_t> found;
    for (int64_t g = begin; g < end; ++g) {
      if (chosen.taken[g] > 0 && kept[g] == 0) found.push_back(g);
    }
    return found;
  };
  std::vector<int64_t> left = orphans();
  if (left.empty()) return;
  Wishes wishes(problem, image);
  for (int round = 0; round < kRounds && !left.empty() && grant(left, wishes, matched, kept); ++round) left = orphans();
  augment(left, wishes, matched, kept);
}

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
      int64_t* own = matched + image * problem.priors;
      settle(problem, image, chosen, begin, end, own, kept);
      serve(problem, image, begin, end, chosen, own, kept);
    }
  });
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// logits: one (B, A, C), or a (B, shapes x C, H, W) of every level, with any strides. sizes (L, 2): cells down and
// across; cell (L, shapes, 4); strides (L,); ranges (L, 2), without a row for anchors; all four contiguous, on the CPU.
Problem read(const std::vector<Tensor>& logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
             const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
             const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes) {
  Problem problem{};
  problem.images = splits.size(0) - 1;
  problem.priors = boxes.size(1);
  problem.classes = classes;
  problem.boxes = data<Box>(boxes);
  problem.truth = data<Box>(truth);
  problem.label = data<int64_t>(labels);
  problem.splits = data<int64_t>(splits);
  problem.counts = data<int64_t>(counts);
  problem.edges = data<float>(edges);
  problem.rows = counts.size(0);
  problem.bins = counts.size(1);
  problem.points = ranges.size(0) > 0;
  const int64_t rows = labels.size(0);
  STD_TORCH_CHECK(problem.splits[0] == 0 && problem.splits[problem.images] == rows, "splits must run from 0 to the ",
                  rows, " ground truths, got ", problem.splits[0], " to ", problem.splits[problem.images]);
  for (int64_t g = 0; g < rows; ++g) {
    STD_TORCH_CHECK(problem.label[g] >= 0 && problem.label[g] < classes, "labels must be below the ", classes,
                    " classes, got ", problem.label[g]);
  }
  for (int64_t image = 0; image < problem.images; ++image) {
    STD_TORCH_CHECK(problem.splits[image] <= problem.splits[image + 1], "splits must not descend, they do after ",
                    problem.splits[image]);
  }
  const int64_t shapes = cell.size(1);
  const bool whole = logits[0].dim() == 3;
  int64_t first = 0;
  for (int64_t i = 0; i < sizes.size(0); ++i) {
    Level level{};
    level.height = data<int64_t>(sizes)[2 * i];
    level.width = data<int64_t>(sizes)[2 * i + 1];
    level.shapes = shapes;
    level.first = first;
    level.stride = data<float>(strides)[i];
    level.cell = data<Box>(cell) + i * shapes;
    if (problem.points) {
      level.low = data<float>(ranges)[2 * i];
      level.high = data<float>(ranges)[2 * i + 1];
    }
    const Tensor& own = whole ? logits[0] : logits[i];
    level.of_image = own.stride(0);
    if (whole) {
      level.logits = data<float>(own) + first * own.stride(1);
      level.of_shape = own.stride(1);
      level.of_class = own.stride(2);
      level.of_column = shapes * level.of_shape;
      level.of_row = level.width * level.of_column;
    } else {
      level.logits = data<float>(own);
      level.of_class = own.stride(1);
      level.of_shape = classes * level.of_class;
      level.of_row = own.stride(2);
      level.of_column = own.stride(3);
    }
    problem.levels.push_back(level);
    first += level.height * level.width * shapes;
  }
  return problem;
}

Tensor assign_topk(const std::vector<Tensor> logits, const Tensor& boxes, const Tensor& truth, const Tensor& labels,
                   const Tensor& splits, const Tensor& sizes, const Tensor& cell, const Tensor& strides,
                   const Tensor& ranges, const Tensor& counts, const Tensor& edges, int64_t classes, double alpha,
                   double min_iou) {
  Problem problem =
      read(logits, boxes, truth, labels, splits, sizes, cell, strides, ranges, counts, edges, classes);
  problem.alpha = static_cast<float>(alpha);
  problem.min_iou = static_cast<float>(min_iou);
  Tensor matched = torch::stable::new_empty(labels, {problem.images, problem.priors});
  int64_t* out = static_cast<int64_t*>(matched.mutable_data_ptr());
  std::fill(out, out + problem.images * problem.priors, int64_t{-1});
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
