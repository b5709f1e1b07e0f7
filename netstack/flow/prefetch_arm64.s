#include "textflag.h"

// func fetch(line, next unsafe.Pointer)
TEXT ·fetch(SB), NOSPLIT|NOFRAME, $0-16
	MOVD	line+0(FP), R0
	MOVD	next+8(FP), R1
	PRFM	(R0), PLDL1KEEP
	PRFM	(R1), PLDL1KEEP
	RET
