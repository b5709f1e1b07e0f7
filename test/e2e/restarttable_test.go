package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/lab"
)

// anotherBuild returns another build of the product, which says that it is of another version.
func anotherBuild(t *testing.T) string {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "tapestry")
	out, err := exec.Command("go", "build", "-ldflags", "-X tapestry.dev/tapestry/version.stamped=another", "-o", exe, "tapestry.dev/tapestry/cmd/tapestry").CombinedOutput()
	if err != nil {
		t.Fatalf("build the product: %v: %s", err, out)
	}
	return exe
}

// restartTable returns the rows as a table of Markdown.
func restartTable(rows []*restartRow) string {
	var b strings.Builder
	b.WriteString("| | connections | cut | wrong bytes | longest stall, ms | MB | attempts | refused | reset | no answer | slowest, ms |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, row := range rows {
		if g := &row.got; row.network == "tcp" {
			fmt.Fprintf(&b, "| %s | %d | %d | %d | %.0f | %d | %d | %d | %d | %d | %.0f |\n", row.name, g.Connections, g.Cut, g.Wrong, g.WorstMillis, g.Bytes>>20,
				g.Attempts, g.Refused, g.Reset, g.Late, g.SlowestMillis)
		}
	}
	b.WriteString("\n| | sockets | at another port, or answered by another pod | wrong | longest time to an answer, ms | datagrams | lost | refused |\n|---|---|---|---|---|---|---|---|\n")
	for _, row := range rows {
		if g := &row.got; row.network == "udp" {
			fmt.Fprintf(&b, "| %s | %d | %d | %d | %.0f | %d | %d | %d |\n", row.name, g.Connections, g.Moved, g.Wrong+g.Cut, g.WorstMillis, g.Sent, g.Lost, g.Refused)
		}
	}
	return b.String()
}

// loadAverage is the machine's before the measurement; "?" where it does not tell.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	return strings.Join(strings.Fields(string(b))[:2], " and ")
}

// told says when, of what and where was measured.
func (c *cluster) told(t *testing.T, load string) string {
	t.Helper()
	version := strings.TrimSpace(c.run0(t, lab.Node("node-1"), theProduct(t), "--version"))
	if commit, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		version = "commit " + strings.TrimSpace(string(commit))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s, %s, %s, Linux %s, %d processors, load average before it %s (of one and of five minutes).\n\n",
		time.Now().UTC().Format("2 January 2006, 15:04 UTC"), version, runtime.Version(), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), load)
}

// recordHead is the heading of the last section of a document, which a record replaces.
const recordHead = "## The record\n"

// record writes what was measured into a document; "" is none.
func record(t *testing.T, document, text string) {
	t.Helper()
	if document == "" {
		return
	}
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatalf("%s: %v", recordVariable, err)
	}
	before, _, there := strings.Cut(string(b), recordHead)
	if !there {
		t.Fatalf("%s=%s: the document has no section %q", recordVariable, document, strings.TrimSpace(recordHead))
	}
	if err := os.WriteFile(document, []byte(before+recordHead+"\n"+text), 0o644); err != nil {
		t.Fatal(err)
	}
}
