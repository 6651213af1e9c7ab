// Names of the entry points. Each instruction set has its own, such as tandem_linear_avx2.
#pragma once

#define TANDEM_JOIN(name, set) tandem_##name##_##set
#define TANDEM_EXPAND(name, set) TANDEM_JOIN(name, set)
#define ENTRY(name) TANDEM_EXPAND(name, TANDEM_SET)
