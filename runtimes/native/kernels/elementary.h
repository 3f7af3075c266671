// exp and GELU of a vector of floats; the coefficients are minimax fits made for these ranges.
#pragma once

#include "kernels/simd.h"

namespace tokexport::TOKEXPORT_ISA {

// exp(x) for x <= 88, within 2 units in the last place; below -87 it is 0.
inline Floats exp_of(Floats x) {
  const Ints is_zero = x < -87.0f;
  // x = n ln 2 + t with |t| <= ln 2 / 2; adding 1.5 * 2^23 rounds to a whole number.
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  Floats t = x - n * 0.693145752f;
  t = t - n * 1.42860677e-6f;
  Floats series = all(0.00138146128f);
  series = series * t + 0.00836871006f;
  series = series * t + 0.041668389f;
  series = series * t + 0.166665211f;
  series = series * t + 0.49999994f;
  const Floats value = t * t * series + t + 1.0f;
  Words bits;
  Words power;  // wraps around where the result is 0 in any case
  std::memcpy(&bits, &value, sizeof bits);
  std::memcpy(&power, &shifted, sizeof power);
  bits += power << 23;
  bits = is_zero ? Words{} : bits;
  Floats result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// x Φ(x), GELU in its exact form: Φ(x) = 0.5 + 0.5 erf(x / √2), the latter as x times a quotient of
// two polynomials in x²; relative error of that fit 2.1e-8.
inline Floats gelu_of(Floats x) {
  constexpr float kEnd = 5.586f;  // behind it Φ is 0 or 1 to the last place
  const Floats inside = smaller(larger(x, all(-kEnd)), all(kEnd));
  const Floats square = inside * inside;
  Floats over = all(2.23832028e-08f);
  over = over * square + 6.29077795e-06f;
  over = over * square + 0.000168300088f;
  over = over * square + 0.0046735825f;
  over = over * square + 0.0338617861f;
  over = over * square + 0.398942262f;
  Floats under = all(1.18224057e-06f);
  under = under * square + 7.31708424e-05f;
  under = under * square + 0.00188189489f;
  under = under * square + 0.0286399927f;
  under = under * square + 0.25154525f;
  under = under * square + 1.0f;
  const Floats share = 0.5f + inside * over / under;
  return x * (x < -kEnd ? Floats{} : share);
}

}  // namespace tokexport::TOKEXPORT_ISA
