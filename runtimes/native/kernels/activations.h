// exp and GELU of a vector of floats; the coefficients are minimax fits made for these ranges.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// exp(x) for x <= 88, within 2 units in the last place; below -87 it is 0.
inline Floats exp(Floats x) {
  const Ints underflows = x < -87.0f;
  // x = n ln 2 + t with |t| <= ln 2 / 2; adding 1.5 * 2^23 rounds to a whole number.
  const Floats rounded = x * 1.44269504f + 12582912.0f;
  const Floats n = rounded - 12582912.0f;
  Floats t = x - n * 0.693145752f;
  t = t - n * 1.42860677e-6f;
  Floats polynomial = broadcast(0.00138146128f);
  polynomial = polynomial * t + 0.00836871006f;
  polynomial = polynomial * t + 0.041668389f;
  polynomial = polynomial * t + 0.166665211f;
  polynomial = polynomial * t + 0.49999994f;
  const Floats value = t * t * polynomial + t + 1.0f;
  UInts bits;
  UInts exponent;  // wraps around where the result is 0 in any case
  std::memcpy(&bits, &value, sizeof bits);
  std::memcpy(&exponent, &rounded, sizeof exponent);
  bits += exponent << 23;
  bits = underflows ? UInts{} : bits;
  Floats result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// x Φ(x), GELU in its exact form: Φ(x) = 0.5 + 0.5 erf(x / √2), the latter as x times a quotient of
// two polynomials in x²; relative error of that fit 2.1e-8.
inline Floats gelu(Floats x) {
  constexpr float kLimit = 5.586f;  // beyond it Φ is 0 or 1 to the last place
  const Floats clamped = min(max(x, broadcast(-kLimit)), broadcast(kLimit));
  const Floats squared = clamped * clamped;
  Floats numerator = broadcast(2.23832028e-08f);
  numerator = numerator * squared + 6.29077795e-06f;
  numerator = numerator * squared + 0.000168300088f;
  numerator = numerator * squared + 0.0046735825f;
  numerator = numerator * squared + 0.0338617861f;
  numerator = numerator * squared + 0.398942262f;
  Floats denominator = broadcast(1.18224057e-06f);
  denominator = denominator * squared + 7.31708424e-05f;
  denominator = denominator * squared + 0.00188189489f;
  denominator = denominator * squared + 0.0286399927f;
  denominator = denominator * squared + 0.25154525f;
  denominator = denominator * squared + 1.0f;
  const Floats share = 0.5f + clamped * numerator / denominator;
  return x * (x < -kLimit ? Floats{} : share);
}

}  // namespace tokexport::TOKEXPORT_ISA
