package descriptors

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sum returns how many descriptors all users together may have.
func sum(p Plan) (n int) {
	for u, part := range parts {
		n += p.units[u] * part.each
	}
	return n
}

// All users together never have more descriptors than the process, whatever its limit is, and the weights leave nothing
// unused.
func TestSum(t *testing.T) {
	weights := 0
	for _, part := range parts {
		weights += part.weight
	}
	if weights != whole {
		t.Errorf("the weights are %d together, want %d", weights, whole)
	}
	for limit := whole; limit <= ceiling+whole; limit++ {
		p := For(uint64(limit))
		got := sum(p)
		if got > limit {
			t.Fatalf("of %d descriptors, %d are given away", limit, got)
		}
		if limit < ceiling && got < limit-limit/100-2*int(users) {
			t.Fatalf("of %d descriptors, only %d are given to anybody", limit, got)
		}
	}
	for _, limit := range []uint64{1 << 30, 1<<63 - 1, ^uint64(0)} {
		if got := sum(For(limit)); got > ceiling {
			t.Errorf("of %d descriptors, %d are given away", limit, got)
		}
	}
}

// More descriptors never mean less for anybody, and nobody has nothing.
func TestMoreIsMore(t *testing.T) {
	last := For(whole)
	for limit := whole; limit < ceiling; limit += 1 + limit/300 {
		p := For(uint64(limit))
		for u := range users {
			if p.Of(u) < 1 || p.Of(u) < last.Of(u)-int(users) { // each part is rounded
				t.Fatalf("%s: %d of %d descriptors, and %d of fewer", parts[u].text, p.Of(u), limit, last.Of(u))
			}
		}
		last = p
	}
}

func TestFor(t *testing.T) {
	for _, tt := range []struct {
		limit                                                        uint64
		own, pods, listeners, egress, dials, clients, questions, api int
	}{
		{1024, 104, 112, 40, 120, 48, 80, 32, 32},
		{Useful, 512, 1024, 640, 3576, 768, 2936, 512, 264},
		{20000, 512, 1024, 781, 4722, 937, 3941, 625, 264},
		{1 << 20, 512, 1024, 12288, 503644, 4096, 462684, 1000, 264},
	} {
		p := For(tt.limit)
		got := [...]int{p.Of(Own), p.Of(Pods), p.Of(Listeners), p.Of(EgressTCP), p.Of(NodePortConns), p.Of(IngressClients), p.Of(Questions), p.Of(Local)}
		if want := [...]int{tt.own, tt.pods, tt.listeners, tt.egress, tt.dials, tt.clients, tt.questions, tt.api}; got != want {
			t.Errorf("of %d: %v, want %v", tt.limit, got, want)
		}
	}
}

func TestParts(t *testing.T) {
	p := For(1 << 16)
	list := p.Parts()
	for u, part := range list {
		if part.For == "" || part.Most != p.Of(User(u)) {
			t.Errorf("%d: %+v", u, part)
		}
	}
	if len(list) != int(users) || p.Limit() != 1<<16 {
		t.Errorf("%d parts of %d", len(list), p.Limit())
	}
}

const childEnv = "TAPESTRY_TEST_DESCRIPTORS"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Stdout.WriteString(strconv.FormatUint(limit(), 10))
		return
	}
	os.Exit(m.Run())
}

// A process that starts with a low soft limit has its hard limit: an agent needs no wrapper that raises it.
func TestSoftLimitIsRaised(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		limits string
		want   []string // Go sets the soft limit to one less than the hard one (golang/go#66797)
	}{
		{"ulimit -Sn 100 && ulimit -Hn 700", []string{"699", "700"}},
		{"ulimit -Sn 300 && ulimit -Hn 300", []string{"300"}},
	} {
		cmd := exec.Command("sh", "-c", tt.limits+` && exec "$0"`, exe)
		cmd.Env = append(os.Environ(), childEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", tt.limits, err, out)
		}
		if got := strings.TrimSpace(string(out)); !slices.Contains(tt.want, got) {
			t.Errorf("%s: the process may have %s, want %v", tt.limits, got, tt.want)
		}
	}
}
