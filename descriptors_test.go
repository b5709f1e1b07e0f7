package tapestry

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/share/descriptors"
)

// openers are the calls that make descriptors, by the name of their package.
var openers = map[string][]string{
	"net": {"Dial", "DialTCP", "DialUDP", "DialUnix", "DialTimeout", "Dialer", "Listen", "ListenTCP", "ListenUDP", "ListenUnix",
		"ListenUnixgram", "ListenPacket", "ListenConfig", "FileConn", "FileListener", "FilePacketConn"},
	"unix":    {"Socket", "Socketpair", "Open", "Openat", "Openat2", "Dup", "Dup2", "Dup3", "FcntlInt", "EpollCreate1", "Eventfd", "MemfdCreate", "InotifyInit1", "Pipe2", "TimerfdCreate", "PidfdOpen", "Accept", "Accept4", "ParseUnixRights"},
	"syscall": {"Socket", "Socketpair", "Open", "Openat", "Dup", "Dup3", "EpollCreate1", "InotifyInit1", "Pipe2", "Accept", "Accept4", "ParseUnixRights"},
	"os":      {"Open", "OpenFile", "OpenRoot", "Create", "CreateTemp", "Pipe", "ReadFile", "WriteFile", "ReadDir", "StartProcess"},
	"exec":    {"Command", "CommandContext"},
	"http":    {"Get", "Post", "ListenAndServe", "DefaultClient", "DefaultTransport"},
}

// acceptors are the methods of listeners that make descriptors.
var acceptors = []string{"Accept", "AcceptTCP", "AcceptUnix"}

// spender is a package of the agent that makes descriptors.
type spender struct {
	users []descriptors.User
	how   string
}

// spenders says by which parts of the plan each package of the agent uses descriptors. What counts as Own must not grow
// with clients, pods or objects.
var spenders = map[string]spender{
	"cmd/tapestry/agent":      {[]descriptors.User{descriptors.Own}, "listeners of health, metrics and Ingress"},
	"cmd/tapestry/agent/heal": {[]descriptors.User{descriptors.Own}, "a small file"},
	"cmd/tapestry/agent/tell": {[]descriptors.User{descriptors.Own}, "a directory that is read"},
	"cmd/tapestry/supervise":  {[]descriptors.User{descriptors.Own}, "a pipe to the agent, in the process that starts it"},
	"fdpass":                  {[]descriptors.User{descriptors.Local}, "connections, and what comes with their messages"},
	"ingress":                 {[]descriptors.User{descriptors.IngressClients}, "its dials are those of Options.Dial"},
	"kube/cluster/connect":    {[]descriptors.User{descriptors.Own}, "the API server, in HTTP/2"},
	"kube/cluster/pins":       {[]descriptors.User{descriptors.Own}, "a file"},
	"kube/cluster/saved":      {[]descriptors.User{descriptors.Own}, "files, one at a time"},
	"kube/cluster/servers":    {[]descriptors.User{descriptors.Own}, "files, one at a time"},
	"kube/ipam":               {[]descriptors.User{descriptors.Own}, "the journal"},
	"kube/manifests":          {[]descriptors.User{descriptors.Own}, "files, one at a time"},
	"netstack/clientrelay":    {[]descriptors.User{descriptors.Listeners}, "a socket each, in place of the one that it is given"},
	"netstack/dgram":          {[]descriptors.User{descriptors.EgressUDP, descriptors.EgressPings}, "sockets of both relays"},
	"netstack/hostaddr":       {[]descriptors.User{descriptors.Own}, "a netlink socket"},
	"netstack/keeper":         {[]descriptors.User{descriptors.Own}, "the keeper's connection and what is held for the agent"},
	"netstack/poll":           {[]descriptors.User{descriptors.Own, descriptors.Listeners, descriptors.NodePortArrivals}, "an epoll instance, and listeners that it takes over, with their clients"},
	"netstack/stack":          {nil, "its listeners are those of netstack/poll"},
	"netstack/tap":            {[]descriptors.User{descriptors.Pods}, "a TAP each"},
	"netstack/tcprelay":       {[]descriptors.User{descriptors.EgressTCP}, "a host socket each"},
	"node":                    {[]descriptors.User{descriptors.NodePortConns, descriptors.NodePortUDP, descriptors.IngressBackends, descriptors.Questions, descriptors.HostProxy, descriptors.Own}, "dials of others, and a probe"},
	"overlay":                 {[]descriptors.User{descriptors.Own}, "the key"},
	"overlay/underlay":        {[]descriptors.User{descriptors.Own}, "the tunnel's socket"},
	"services/dns/forward":    {[]descriptors.User{descriptors.Questions}, "a socket each"},
	"services/dns/stream":     {nil, "its connections are those of the stack"},
	"services/healthcheck":    {[]descriptors.User{descriptors.CheckPorts, descriptors.Checks}, "its listeners and their connections"},
	"services/hostproxy":      {[]descriptors.User{descriptors.HostProxy, descriptors.Own}, "a client each, and one at a time to ask whose it is"},
	"services/nodeport":       {[]descriptors.User{descriptors.Listeners, descriptors.NodePortConns, descriptors.NodePortArrivals, descriptors.NodePortUDP}, "its sockets and those of clients"},
	"share/limbo":             {[]descriptors.User{descriptors.IngressRefused}, "pairs of sockets"},
	"share/conns":             {[]descriptors.User{descriptors.Checks, descriptors.Reports}, "connections that it shares out"},
}

// Whoever makes descriptors in an agent has a part of the plan, so that the sum of all parts is the truth. A package
// that begins to make some must get its number from the plan, and a row here.
func TestDescriptorsArePlanned(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./cmd/tapestry/agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	packages := 0
	for path := range strings.FieldsSeq(string(out)) {
		dir, ours := strings.CutPrefix(path, module)
		if !ours {
			continue
		}
		packages++
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if slices.Contains(acceptors, s.Sel.Name) {
						found[dir] = append(found[dir], s.Sel.Name)
					}
					if x, ok := s.X.(*ast.Ident); ok && slices.Contains(openers[x.Name], s.Sel.Name) {
						found[dir] = append(found[dir], x.Name+"."+s.Sel.Name)
					}
				}
				return true
			})
		}
	}
	for dir, calls := range found {
		if spenders[dir].how == "" {
			t.Errorf("%s makes descriptors (%s): give it a part in share/descriptors, or charge it to one, and a row in this test", dir, strings.Join(calls, ", "))
		}
	}
	known := map[descriptors.User]bool{}
	for dir, s := range spenders {
		if found[dir] == nil {
			t.Errorf("%s has a row in this test and makes no descriptors", dir)
		}
		for _, u := range s.users {
			known[u] = true
		}
	}
	if n := len(descriptors.Ours().Parts()); len(known) != n {
		t.Errorf("%d of the %d parts of the plan are used by somebody", len(known), n)
	}
	if packages < 40 {
		t.Errorf("looked at only %d packages", packages)
	}
}
