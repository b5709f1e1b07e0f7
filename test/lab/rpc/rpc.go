// Package rpc is the protocol between a lab's supervisor and its clients over the supervisor's socket. A connection
// carries one request and its answers.
package rpc

import (
	"path/filepath"
	"time"
)

// The requests.
const (
	// OpStatus is answered with a Status in a memory file that comes with the answer, since a Status may be larger than
	// a message.
	OpStatus = "status"
	// OpWait is answered as soon as everything is ready, or after Timeout with what is not ready.
	OpWait = "wait"
	// OpExec starts a command. With the request come stdin, stdout and stderr, or one terminal.
	OpExec = "exec"
	// OpImpair and OpUnimpair change the underlay between two nodes.
	OpImpair   = "impair"
	OpUnimpair = "unimpair"
	// OpSignalAgent sends a signal to a node's agent. OpStartAgent starts an agent that was told to stay down.
	// OpUpgradeAgent has another agent take over the node.
	OpSignalAgent  = "signal-agent"
	OpStartAgent   = "start-agent"
	OpUpgradeAgent = "upgrade-agent"
	// OpDown ends the lab. The end of the connection is the answer.
	OpDown = "down"
)

// Request is the first message of a connection.
type Request struct {
	Op      string
	Exec    *Exec         `json:",omitempty"`
	Impair  *Impair       `json:",omitempty"`
	Agent   *Agent        `json:",omitempty"`
	Timeout time.Duration `json:",omitempty"`
}

// Exec is a command to run.
type Exec struct {
	// Kind is one of the kinds of target. Name is "namespace/name" for a pod, or a node's name.
	Kind, Name string
	Argv       []string
	// Env is added to the environment of the target.
	Env []string
	Dir string `json:",omitempty"`
	// Terminal says that one descriptor came, which becomes the command's controlling terminal.
	Terminal bool
}

// The kinds of Exec targets.
const (
	Pod     = "pod"
	Node    = "node"
	Outside = "outside"
)

// Impair names two members of the underlay: nodes, or "outside".
type Impair struct {
	A, B string
	// Config is an impair.Config.
	Config []byte `json:",omitempty"`
}

// Agent says what to do with a node's agent.
type Agent struct {
	Node   string
	Signal int `json:",omitempty"`
	// Keeper chooses the node's keeper in place of its agent.
	Keeper bool `json:",omitempty"`
	// StayDown keeps the supervisor from starting the process again when it ends.
	StayDown bool `json:",omitempty"`
	// Product is the executable of the agent that takes over, and of those after it; "" is the one of the lab.
	Product string `json:",omitempty"`
}

// Answer is an answer of the supervisor. Exec gets two: one when the command has started, and one with Exit.
type Answer struct {
	Error string `json:",omitempty"`
	Exit  *int   `json:",omitempty"`
	PID   int    `json:",omitempty"`
}

// Signal is what the client of an Exec may send while the command runs.
type Signal struct {
	Number int
}

// Paths in the folder of a lab.
const (
	socketName = "lab.sock"
	configName = "config.json"
	pidName    = "pid"
	logName    = "supervisor.log"
)

// Socket returns the socket of the supervisor of the lab in dir.
func Socket(dir string) string { return filepath.Join(dir, socketName) }

// ConfigFile returns the file with the supervisor's configuration.
func ConfigFile(dir string) string { return filepath.Join(dir, configName) }

// PIDFile returns the file with the ID of the first process of the lab's namespaces, as seen by the process that
// started it.
func PIDFile(dir string) string { return filepath.Join(dir, pidName) }

// LogFile returns the supervisor's log.
func LogFile(dir string) string { return filepath.Join(dir, logName) }

// PodDir returns the folder of a pod.
func PodDir(dir, namespace, name string) string {
	return filepath.Join(dir, "pods", namespace+"_"+name)
}

// NodeDir returns the folder of a node.
func NodeDir(dir, name string) string { return filepath.Join(dir, "nodes", name) }

// AnnounceSocket returns the socket at which the announcers of a node ask its agent.
func AnnounceSocket(dir, node string) string {
	return filepath.Join(NodeDir(dir, node), "announce.sock")
}

// PodLog returns the log of a pod's containers.
func PodLog(dir, namespace, name string) string {
	return filepath.Join(dir, "pods", namespace+"_"+name+".log")
}

// NodeLog returns the log of a node's program: agent, keeper or host-tap.
func NodeLog(dir, node, program string) string {
	return filepath.Join(NodeDir(dir, node), program+".log")
}

// ObjectsDir returns the folder from which the agents read objects.
func ObjectsDir(dir string) string { return filepath.Join(dir, "objects") }
