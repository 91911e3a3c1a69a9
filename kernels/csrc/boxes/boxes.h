// Overlap of two boxes and its gradient, once for CPU and CUDA. Boxes are xyxy; a side that is negative counts
// as 0, so such a box has area 0 and overlaps nothing. Written without branches, so that loops over it vectorise.
//
// Sources: Rezatofighi et al. 2019, Algorithm 1 (GIoU); Zheng et al. 2020, Eq. 6 and 7 (DIoU), 8 to 11 (CIoU).

#pragma once

#include <limits>

#include "common/numeric.h"

namespace detsearch::boxes {

enum Measure : int { IOU = 0, GIOU = 1, DIOU = 2, CIOU = 3 };

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// value: the measure asked for. The three areas are in px^2.
template <typename T>
struct Overlap {
  T value, shared, covered, hull;
};

// Written so that NaN stays NaN: a diverged box must not look like an empty one.
template <typename T>
DETSEARCH_INLINE T positive(T side) {
  return side < T(0) ? T(0) : side;
}

template <typename T>
DETSEARCH_INLINE T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
DETSEARCH_INLINE T larger(T a, T b) {
  return a > b ? a : b;
}

// n / d, and 0 where there is nothing to divide by (d is never negative).
template <typename T>
DETSEARCH_INLINE T ratio(T n, T d) {
  // the smallest normal number, not 0: the reciprocal of a subnormal one would be infinite
  return d <= std::numeric_limits<T>::min() ? T(0) : n / d;
}

template <typename T>
DETSEARCH_INLINE T area(const Box<T>& box) {
  return positive(box.x2 - box.x1) * positive(box.y2 - box.y1);
}

DETSEARCH_INLINE double arctangent(double w, double h) { return std::atan2(w, h); }

// atan(w / h) of sides >= 0 in [0, pi / 2]; 0 for two empty sides. Absolute error below 2e-7.
DETSEARCH_INLINE float arctangent(float w, float h) {
  // the shorter over the longer side, at most 1: there the polynomial holds, and the rest follows by symmetry
  const float t = ratio(smaller(w, h), larger(w, h)), z = t * t;
  float p = 0.00262224278f;
  p = fused(p, z, -0.0151325287f);
  p = fused(p, z, 0.0411218479f);
  p = fused(p, z, -0.0736670494f);
  p = fused(p, z, 0.105739318f);
  p = fused(p, z, -0.141859755f);
  p = fused(p, z, 0.199903965f);
  p = fused(p, z, -0.333329856f);
  const float angle = fused(t, z * p, t);
  return w > h ? 1.57079637f - angle : angle;
}

// Shape of a box as CIoU compares it.
template <typename T>
DETSEARCH_INLINE T angle(const Box<T>& box) {
  return arctangent(positive(box.x2 - box.x1), positive(box.y2 - box.y1));
}

constexpr double FOUR_OVER_PI_SQUARED = 0.40528473456935109;

// Areas and angles are passed in, because in a pairwise comparison they belong to a row or a column. angle_a and
// angle_b are read for CIoU only.
template <int measure, typename T>
DETSEARCH_INLINE Overlap<T> compare(const Box<T>& a, T area_a, T angle_a, const Box<T>& b, T area_b, T angle_b, T eps) {
  const T width = positive(smaller(a.x2, b.x2) - larger(a.x1, b.x1));
  const T height = positive(smaller(a.y2, b.y2) - larger(a.y1, b.y1));
  const T hull_width = positive(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
  const T hull_height = positive(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
  Overlap<T> overlap;
  overlap.shared = width * height;
  overlap.covered = area_a + area_b - overlap.shared;
  overlap.hull = hull_width * hull_height;
  const T iou = ratio(overlap.shared, overlap.covered + eps);
  overlap.value = iou;
  if constexpr (measure == GIOU) overlap.value = iou - ratio(overlap.hull - overlap.covered, overlap.hull + eps);
  if constexpr (measure == DIOU || measure == CIOU) {
    const T dx = (a.x1 + a.x2 - b.x1 - b.x2) / 2, dy = (a.y1 + a.y2 - b.y1 - b.y2) / 2;
    const T diagonal = hull_width * hull_width + hull_height * hull_height;
    overlap.value = iou - ratio(dx * dx + dy * dy, diagonal + eps);
  }
  if constexpr (measure == CIOU) {
    const T turn = angle_a - angle_b, v = T(FOUR_OVER_PI_SQUARED) * turn * turn;
    overlap.value = overlap.value - ratio(v, T(1) - iou + v + eps) * v;
  }
  return overlap;
}

// 1 where a is larger, 1/2 where both are equal: how PyTorch shares the gradient of a maximum.
template <typename T>
DETSEARCH_INLINE T max_gradient(T a, T b) {
  return a > b ? T(1) : (a == b ? T(0.5) : T(0));
}

template <typename T>
DETSEARCH_INLINE T where_positive(T side, T gradient) {
  return side > T(0) ? gradient : T(0);
}

// Gradient of one side's end points in both boxes. grad_shared and grad_hull: of the sides of intersection and
// hull; shift: of the centres' distance along the side.
template <typename T>
DETSEARCH_INLINE void side_gradient(T a1, T a2, T b1, T b2, T grad_shared, T grad_hull, T grad_a, T grad_b, T shift,
                                    T& out_a1, T& out_a2, T& out_b1, T& out_b2) {
  const T inner = where_positive(smaller(a2, b2) - larger(a1, b1), grad_shared);
  const T outer = where_positive(larger(a2, b2) - smaller(a1, b1), grad_hull);
  const T own_a = where_positive(a2 - a1, grad_a), own_b = where_positive(b2 - b1, grad_b);
  const T first = max_gradient(a1, b1), last = max_gradient(a2, b2);
  out_a1 = shift - own_a - inner * first - outer * (T(1) - first);
  out_b1 = -shift - own_b - inner * (T(1) - first) - outer * first;
  out_a2 = shift + own_a + inner * (T(1) - last) + outer * last;
  out_b2 = -shift + own_b + inner * last + outer * (T(1) - last);
}

// Gradient of the boxes, given that of the value and of the three areas. CIoU's trade-off factor alpha counts as
// a constant (Zheng et al. 2020, after Eq. 12; torchvision does the same).
template <int measure, typename T>
DETSEARCH_INLINE void gradient(const Box<T>& a, const Box<T>& b, const Overlap<T>& grad, T eps, Box<T>& grad_a,
                               Box<T>& grad_b) {
  const T wa = positive(a.x2 - a.x1), ha = positive(a.y2 - a.y1);
  const T wb = positive(b.x2 - b.x1), hb = positive(b.y2 - b.y1);
  const T width = positive(smaller(a.x2, b.x2) - larger(a.x1, b.x1));
  const T height = positive(smaller(a.y2, b.y2) - larger(a.y1, b.y1));
  const T hull_width = positive(larger(a.x2, b.x2) - smaller(a.x1, b.x1));
  const T hull_height = positive(larger(a.y2, b.y2) - smaller(a.y1, b.y1));
  const T shared = width * height, covered = wa * ha + wb * hb - shared, hull = hull_width * hull_height;

  // the reciprocal once: a division takes several times as long as a product
  const T per_covered = ratio(T(1), covered + eps), iou = shared * per_covered;
  T to_shared = grad.shared + grad.value * per_covered;
  T to_covered = grad.covered - grad.value * iou * per_covered;
  T to_hull = grad.hull, to_diagonal = T(0), shift_x = T(0), shift_y = T(0);
  T turn_a = T(0), turn_b = T(0);  // gradient of the angles over the squared diagonal of their box
  if constexpr (measure == GIOU) {
    const T per_hull = ratio(T(1), hull + eps);
    to_covered = to_covered + grad.value * per_hull;
    to_hull = to_hull + grad.value * ((hull - covered) * per_hull - T(1)) * per_hull;
  }
  if constexpr (measure == DIOU || measure == CIOU) {
    const T dx = (a.x1 + a.x2 - b.x1 - b.x2) / 2, dy = (a.y1 + a.y2 - b.y1 - b.y2) / 2;
    const T per_diagonal = ratio(T(1), hull_width * hull_width + hull_height * hull_height + eps);
    to_diagonal = grad.value * (dx * dx + dy * dy) * per_diagonal * per_diagonal;
    shift_x = -grad.value * dx * per_diagonal;
    shift_y = -grad.value * dy * per_diagonal;
  }
  if constexpr (measure == CIOU) {
    const T turn = arctangent(wa, ha) - arctangent(wb, hb), v = T(FOUR_OVER_PI_SQUARED) * turn * turn;
    const T to_turn = -grad.value * ratio(v, T(1) - iou + v + eps) * T(2 * FOUR_OVER_PI_SQUARED) * turn;
    turn_a = ratio(to_turn, wa * wa + ha * ha);
    turn_b = ratio(-to_turn, wb * wb + hb * hb);
  }
  to_shared = to_shared - to_covered;  // union = area + area - intersection; after all parts of to_covered are there
  side_gradient(a.x1, a.x2, b.x1, b.x2, to_shared * height, to_hull * hull_height + to_diagonal * 2 * hull_width,
                to_covered * ha + turn_a * ha, to_covered * hb + turn_b * hb, shift_x, grad_a.x1, grad_a.x2, grad_b.x1,
                grad_b.x2);
  side_gradient(a.y1, a.y2, b.y1, b.y2, to_shared * width, to_hull * hull_width + to_diagonal * 2 * hull_height,
                to_covered * wa - turn_a * wa, to_covered * wb - turn_b * wb, shift_y, grad_a.y1, grad_a.y2, grad_b.y1,
                grad_b.y2);
}

}  // namespace detsearch::boxes
