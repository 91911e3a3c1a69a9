// Arithmetic that rounds alike on every processor and GPU: only + - * / sqrt and fma, which IEEE 754 fixes to the
// last bit, so that the CPU and CUDA operators choose the same priors. Both compilers are told not to contract.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DETSEARCH_INLINE __host__ __device__ __forceinline__
#else
#define DETSEARCH_INLINE inline __attribute__((always_inline))
#endif

namespace detsearch {

DETSEARCH_INLINE float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

DETSEARCH_INLINE uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

DETSEARCH_INLINE float fused(float a, float b, float c) {
  // written out, because neither compiler may contract: each product is rounded exactly where it says so
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// e^x for x in [-87, 88], relative error below 2e-7 (Cody-Waite reduction, degree 6).
DETSEARCH_INLINE float exponential(float x) {
  // beyond these limits 2^n is no normal float, and the bits put together below would be another number
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  // adding 1.5 * 2^23 rounds to the nearest integer
  const float shifted = fused(x, 1.44269504f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  // ln 2 in two parts: the first has so few bits that its product with n is exact
  float r = fused(n, -0.693145752f, x);
  r = fused(n, -1.42860677e-6f, r);
  float p = 1.39069157e-3f;
  p = fused(p, r, 8.36147213e-3f);
  p = fused(p, r, 4.16664838e-2f);
  p = fused(p, r, 1.66665941e-1f);
  p = fused(p, r, 5.00000000e-1f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  // n stands in the lowest bits of `shifted`; the shift drops all others
  const uint32_t scale = (float_to_bits(shifted) + 127u) << 23;
  return p * bits_to_float(scale);
}

// ln x for normal x > 0, absolute error below 1e-7 or relative below 2e-7.
DETSEARCH_INLINE float logarithm(float x) {
  const uint32_t bits = float_to_bits(x);
  // mantissa in [sqrt(1/2), sqrt(2)): around 1 the series below needs few terms, and ln 1 is exactly 0
  const uint32_t offset = bits - 0x3f3504f3u;
  const float e = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = bits_to_float((offset & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  // atanh series in s = f / (2 + f)
  const float s = f / (2.0f + f), z = s * s;
  float p = fused(z, 0.24279079f, 0.28498787f);
  p = fused(z, p, 0.40000972f);
  p = fused(z, p, 0.66666663f);
  const float half = 0.5f * f * f;
  // the small terms are joined before f, which would swallow their last bits one by one
  const float tail = s * fused(z, p, half);
  return fused(e, 0.693147182f, f - (half - tail));
}

// ln(1 + x) for x in [0, 1], relative error below 2e-7: a polynomial, without the division of `logarithm`.
DETSEARCH_INLINE float logarithm_above_1(float x) {
  float p = 5.23268804e-3f;
  p = fused(p, x, -2.95052137e-2f);
  p = fused(p, x, 7.82259107e-2f);
  p = fused(p, x, -1.36632428e-1f);
  p = fused(p, x, 1.91060051e-1f);
  p = fused(p, x, -2.48429820e-1f);
  p = fused(p, x, 3.33190978e-1f);
  p = fused(p, x, -4.99994934e-1f);
  p = fused(p, x, 9.99999940e-1f);
  return p * x;
}

}  // namespace detsearch
