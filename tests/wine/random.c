/* What Rust's library asks Windows for random bits, and what this wine does not have yet. */
#include <windows.h>

BOOLEAN WINAPI SystemFunction036(PVOID bits, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bits, SIZE_T length)
{
    return SystemFunction036(bits, (ULONG)length);
}
