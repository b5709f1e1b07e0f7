#include "textflag.h"

// func fetch(line, next unsafe.Pointer)
TEXT ·fetch(SB), NOSPLIT|NOFRAME, $0-16
	MOVQ	line+0(FP), AX
	MOVQ	next+8(FP), BX
	PREFETCHT0	(AX)
	PREFETCHT0	(BX)
	RET
