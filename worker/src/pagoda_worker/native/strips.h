// What products by vectors share: rows come in strips, as high as the registers have room for sums.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace pagoda {

#if defined(__AVX512F__)
constexpr int MOST_STRIP_ROWS = 12;
#else
constexpr int MOST_STRIP_ROWS = 2;
#endif
constexpr int64_t STREAMED_ROWS = std::min(4, MOST_STRIP_ROWS);  // so few are done as fast as weights can be read
constexpr int64_t PANELS_AT_ONCE = 4;         // of one thread, so that it knows what comes next
constexpr int64_t X_BYTES_AT_ONCE = 1 << 20;  // rows that stay in L2 while panel after panel passes

// As few strips as there can be, and all as high.
inline int64_t strip_rows(int64_t M) {
    const int64_t strips = (M + MOST_STRIP_ROWS - 1) / MOST_STRIP_ROWS;
    return (M + strips - 1) / strips;
}

// Rows of whole strips that take so many bytes each, to pass together.
inline int64_t rows_at_once(int64_t strip, int64_t row_bytes) { return std::max<int64_t>(1, X_BYTES_AT_ONCE / row_bytes / strip) * strip; }

// body(std::integral_constant<int, n>()) for n in LEAST … MOST.
template <int LEAST, int MOST, class Body>
inline void with_constant(int64_t n, const Body& body) {
    if constexpr (MOST > LEAST) {
        if (n < MOST) return with_constant<LEAST, MOST - 1>(n, body);
    }
    body(std::integral_constant<int, MOST>());
}

// Weights that are needed next, asked for a few lines at a time, between other work: pages end too soon for what the hardware guesses, and a core
// can wait for few lines at once.
struct Coming {
    const char *at, *end;
    int64_t lines_a_step;

    Coming(const void* from, int64_t bytes, int64_t steps)
        : at(static_cast<const char*>(from)), end(at + bytes), lines_a_step((bytes / 64 + steps - 1) / steps) {}
    void ask() {
        for (int64_t i = 0; i < lines_a_step && at < end; i++, at += 64) _mm_prefetch(at, _MM_HINT_T1);
    }
};

// Where a strip's results of one panel will be written, and what is to be added to them: they come from afar, so they are asked for before the
// strip's last block. `p` has y, residual, ldy and epilogue as Product has them, of T.
template <class T, class P>
inline void ask_for_results(const P& p, int64_t m, int64_t rows, int64_t panel, int64_t panel_columns, bool adds) {
    for (int64_t r = m; r < std::min(m + rows, p.M); r++) {
        const int64_t at = r * p.ldy + panel * panel_columns;
        for (int64_t c = 0; c < panel_columns; c += 64 / int64_t(sizeof(T))) {
            __builtin_prefetch(static_cast<T*>(p.y) + at + c, 1);
            if (adds) __builtin_prefetch(static_cast<const T*>(p.residual) + at + c);
        }
    }
}

}  // namespace pagoda
