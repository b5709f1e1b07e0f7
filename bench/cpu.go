package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of /proc/stat, 1/100 s on every architecture that Go knows (USER_HZ).
const userHZ = 100

// busyTime returns how long the machine's processors were busy since it started, summed over all of them. It counts the
// kernel's work as well as that of every program, which is the only way to compare a path through the kernel with one
// through a process. The machine should do nothing else meanwhile.
func busyTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the processors' time: %w", err)
	}
	return parseBusy(string(b))
}

// parseBusy reads the first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal.
// Guests' time is part of user's. Stolen time is not counted, since other machines used it.
func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the processors' time: expected a line with the sum over them, got %q", line)
	}
	ticks := uint64(0)
	for i, f := range fields[1:8] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the processors' time: %w", err)
		}
		if i != 3 && i != 4 { // idle, iowait
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / userHZ), nil
}
