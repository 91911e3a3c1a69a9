// No ground truth loses its last positive where that can be helped: the rows that chose something and lost it all are
// served from what others have to spare. Rare, sequential, and independent of how the losses were found.

#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace detsearch {

struct Choice {
  float loss;
  int32_t prior;
  bool operator<(const Choice& other) const {
    return loss < other.loss || (loss == other.loss && prior < other.prior);
  }
};

// In what follows `wishes.of(g)` are all candidates of row g by loss, then prior: a const std::vector<Choice>&. matched
// (A,) is the row that owns a prior, or -1; kept, by row, the priors it owns.

constexpr int kRounds = 8;  // as in _keep.py

// One request of every orphan: its candidate of lowest loss that is background or whose owner has another. A prior
// of the background, and an owner, grant the lowest loss. True when anything was granted.
template <typename Wishes>
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
template <typename Wishes>
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

// Rows begin..end - 1 of an image that chose something (taken > 0) and own nothing get a prior where that is possible.
template <typename Wishes>
void serve(int64_t begin, int64_t end, const std::vector<int64_t>& taken, Wishes& wishes, int64_t* matched,
           std::vector<int64_t>& kept) {
  const auto orphans = [&] {
    std::vector<int64_t> found;
    for (int64_t g = begin; g < end; ++g) {
      if (taken[g] > 0 && kept[g] == 0) found.push_back(g);
    }
    return found;
  };
  std::vector<int64_t> left = orphans();
  if (left.empty()) return;
  for (int round = 0; round < kRounds && !left.empty() && grant(left, wishes, matched, kept); ++round) left = orphans();
  augment(left, wishes, matched, kept);
}

}  // namespace detsearch
