// exp, erf and GELU of a vector of floats; the coefficients are minimax fits made for these ranges.
#pragma once

#include "simd.h"

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

// erf(x) as a quotient of two polynomials in x²; relative error of the fit 2.1e-8.
inline Floats erf_of(Floats wanted) {
  const Floats x = smaller(larger(wanted, all(-3.95f)), all(3.95f));
  const Floats square = x * x;
  Floats over = all(2.02589617e-6f);
  over = over * square + 0.000284688125f;
  over = over * square + 0.00380819625f;
  over = over * square + 0.0528755507f;
  over = over * square + 0.191551172f;
  over = over * square + 1.12837914f;
  Floats under = all(3.78316993e-5f);
  under = under * square + 0.00117073349f;
  under = under * square + 0.015055159f;
  under = under * square + 0.114559971f;
  under = under * square + 0.503090481f;
  under = under * square + 1.0f;
  // Behind 3.95 it is ±1 to the last place, which the quotient may miss by one.
  const Floats value = x * over / under;
  return wanted > 3.95f ? all(1.0f) : (wanted < -3.95f ? all(-1.0f) : value);
}

// x Φ(x), GELU in its exact form.
inline Floats gelu_of(Floats x) { return 0.5f * x * (1.0f + erf_of(x * 0.707106781f)); }

}  // namespace tokexport::TOKEXPORT_ISA
