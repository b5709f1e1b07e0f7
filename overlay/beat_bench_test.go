package overlay

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// used returns how much processor time this process has used.
func used(t testing.TB) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkBeats measures what it costs a node to watch so many others and to be watched by as many: a Mesh watches
// them for a second each time, over UDP on loopback with WireGuard's work, and as they are in the same process, each
// question and each answer is both sent and received. What all of them need when nothing is watched is left out.
func BenchmarkBeats(b *testing.B) {
	for _, n := range []int{1, 10, 50, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a := startNode(b, 1, nil)
			var peers []Peer
			for i := range n {
				z := startNode(b, 2+i, nil)
				z.set(a.as(a.loopback()))
				z.AnswerBeats(time.Now().Add(time.Hour))
				peers = append(peers, z.as(z.loopback()))
			}
			a.set(peers...)
			for i := range peers {
				a.awaitSession(peers[i].ID)
			}
			const idle = 3
			before := used(b)
			time.Sleep(idle * time.Second)
			perSecond := (used(b) - before) / idle
			for i := range peers {
				peers[i].Watched = true
			}
			a.set(peers...)
			await.Until(b, "answers of all", func() bool {
				for _, beat := range a.Beats() {
					if beat.Answered.IsZero() {
						return false
					}
				}
				return len(a.Beats()) == n
			})
			before = used(b)
			seconds := 0
			for b.Loop() {
				time.Sleep(time.Second)
				seconds++
			}
			cost := used(b) - before - perSecond*time.Duration(seconds)
			each := float64(cost) / float64(seconds*n)
			b.ReportMetric(each/1e6, "ms/s/peer")
			b.ReportMetric(each*float64(n)/1e7, "%processor")
			late := 0
			for _, beat := range a.Beats() {
				if time.Since(beat.Answered) > 3*BeatEvery {
					late++
				}
			}
			b.ReportMetric(float64(late), "late")
		})
	}
}
