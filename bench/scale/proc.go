package scale

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// resident is the resident memory of a process, in bytes: in all, private, of files, and shared (the flow memory).
type resident struct{ rss, anon, file, shmem int }

func megabytes(bytes int) float64 { return float64(bytes) / 1e6 }

// memory returns the agent's resident memory.
func (n *node) memory() (resident, error) { return memoryOf(n.cmd.Process.Pid) }

func memoryOf(pid int) (resident, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return resident{}, err
	}
	var r resident
	fields := map[string]*int{"VmRSS": &r.rss, "RssAnon": &r.anon, "RssFile": &r.file, "RssShmem": &r.shmem}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if to := fields[name]; to != nil {
			kilobytes, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				return resident{}, fmt.Errorf("memory of process %d: %q: %w", pid, lines.Text(), err)
			}
			*to = kilobytes << 10
		}
	}
	if r.rss == 0 {
		return resident{}, fmt.Errorf("process %d has no memory: it has ended", pid)
	}
	return r, nil
}

// processorTime returns how much processor time a process has used so far, in user and kernel mode, in steps of 10 ms.
func processorTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The program's name, in parentheses, may contain anything. utime and stime are fields 14 and 15.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("time of process %d: %q: %w", pid, data, err)
		}
		ticks += time.Duration(n)
	}
	const perSecond = 100 // USER_HZ, the same on every architecture that Go supports
	return ticks * time.Second / perSecond, nil
}

// settle waits until the agent's memory has stopped changing. After a load the runtime gives back what it does not
// need.
func (n *node) settle(ctx context.Context) error {
	const slack = 1 << 20
	calm, most := n.o.Watch*3/10, 3*n.o.Watch
	begin, since := time.Now(), time.Now()
	last, err := n.memory()
	for err == nil && time.Since(since) < calm && time.Since(begin) < most {
		if err = pause(ctx, n.o.Watch/50); err != nil {
			break
		}
		var now resident
		if now, err = n.memory(); err == nil && max(now.rss-last.rss, last.rss-now.rss) > slack {
			last, since = now, time.Now()
		}
	}
	return err
}
