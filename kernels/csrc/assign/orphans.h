// No ground truth loses its last positive where that can be helped. An orphan is a row that chose something and lost
// all of it; it gets a prior that others can spare. Orphans are rare, so this is sequential.

#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace detsearch {

struct PriorLoss {
  float loss;
  int32_t prior;
  bool operator<(const PriorLoss& other) const {
    return loss < other.loss || (loss == other.loss && prior < other.prior);
  }
};

// In what follows `by_loss.of(g)` gives all candidates of row g by loss, then prior: a const std::vector<PriorLoss>&.
// matched (A,) is the row that owns a prior, or -1; num_owned, by row, how many priors it owns.

constexpr int kRounds = 8;  // as in detsearch_cli/slots/assigners/_keep.py: another number gives other assignments

// Every orphan requests its candidate of lowest loss that is background or whose owner has another. Of the requests for
// one prior of the background, or to one owner, the one of lowest loss is granted. True when anything was granted.
template <typename CandidatesByLoss>
bool grant(const std::vector<int64_t>& orphans, CandidatesByLoss& by_loss, int64_t* matched,
           std::vector<int64_t>& num_owned) {
  struct Request {
    float loss;
    int64_t g;
    int32_t prior;
  };
  // by owner, not by prior: an owner of two priors that gave both would be an orphan itself
  std::map<std::pair<bool, int64_t>, Request> granted;  // by (is an owner, the owner or the prior)
  for (const int64_t g : orphans) {
    for (const PriorLoss& candidate : by_loss.of(g)) {
      const int64_t holder = matched[candidate.prior];
      if (holder >= 0 && num_owned[holder] < 2) continue;
      const auto key = holder < 0 ? std::pair(false, static_cast<int64_t>(candidate.prior)) : std::pair(true, holder);
      const auto [entry, inserted] = granted.try_emplace(key, Request{candidate.loss, g, candidate.prior});
      if (!inserted && candidate.loss < entry->second.loss) entry->second = {candidate.loss, g, candidate.prior};
      break;
    }
  }
  // after all requests: each was chosen by what everybody owned before the round
  for (const auto& [key, request] : granted) {
    matched[request.prior] = request.g;
    num_owned[request.g] = 1;
    if (key.first) --num_owned[key.second];
  }
  return !granted.empty();
}

// Augmenting paths (Berge 1957): an orphan takes a prior, the owner of it moves to another of its candidates, and so on
// until somebody reaches a prior that is background or that its owner can spare.
template <typename CandidatesByLoss>
void augment(const std::vector<int64_t>& orphans, CandidatesByLoss& by_loss, int64_t* matched,
             std::vector<int64_t>& num_owned) {
  std::unordered_set<int64_t> closed;
  for (const int64_t orphan : orphans) {
    std::unordered_map<int32_t, int64_t> asked_by;                // prior -> who asks for it
    std::unordered_map<int64_t, int32_t> owned_by{{orphan, -1}};  // who asks -> what it owns
    std::deque<int64_t> queue{orphan};
    int32_t end = -1;
    while (!queue.empty() && end < 0) {
      const int64_t asker = queue.front();
      queue.pop_front();
      for (const PriorLoss& candidate : by_loss.of(asker)) {
        if (!asked_by.try_emplace(candidate.prior, asker).second) continue;
        const int64_t holder = matched[candidate.prior];
        if (holder < 0 || num_owned[holder] >= 2) {
          end = candidate.prior;
          break;
        }
        if (!owned_by.contains(holder) && !closed.contains(holder)) {
          owned_by[holder] = candidate.prior;
          queue.push_back(holder);
        }
      }
    }
    if (end < 0) {  // none of these rows can move, now or later: they are never searched again
      for (const auto& [asker, prior] : owned_by) closed.insert(asker);
      continue;
    }
    if (matched[end] >= 0) --num_owned[matched[end]];
    num_owned[orphan] = 1;
    while (end >= 0) {  // back along the path; the orphan itself owned -1
      const int64_t asker = asked_by[end];
      matched[end] = asker;
      end = owned_by[asker];
    }
  }
}

// Gives a prior to the orphans among the rows begin..end - 1 of an image, wherever that is possible.
template <typename CandidatesByLoss>
void serve_orphans(int64_t begin, int64_t end, const std::vector<int64_t>& num_chosen, CandidatesByLoss& by_loss,
                   int64_t* matched, std::vector<int64_t>& num_owned) {
  const auto orphans = [&] {
    std::vector<int64_t> rows;
    for (int64_t g = begin; g < end; ++g) {
      if (num_chosen[g] > 0 && num_owned[g] == 0) rows.push_back(g);
    }
    return rows;
  };
  std::vector<int64_t> left = orphans();
  if (left.empty()) return;
  for (int round = 0; round < kRounds && !left.empty() && grant(left, by_loss, matched, num_owned); ++round)
    left = orphans();
  augment(left, by_loss, matched, num_owned);
}

}  // namespace detsearch
