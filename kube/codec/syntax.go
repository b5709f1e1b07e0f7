package codec

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The YAML parser returns errors as text. An error of its scanner names the line of the mistake. An error of its
// grammar names the line where the enclosing list or mapping begins, counted from 0.
var (
	yamlError    = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	grammarError = regexp.MustCompile(`^did not find expected (',' or|node content|<)`)
	anchorError  = regexp.MustCompile(`^unknown anchor '`)
	indentError  = regexp.MustCompile(`^did not find expected (key|'-' indicator)`)
)

// syntaxError returns the line and the message of an error of the YAML parser.
func syntaxError(data []byte, err error) (line int, msg string) {
	m := yamlError.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return 1, err.Error()
	}
	line, _ = strconv.Atoi(m[1]) // without a number, the first line
	switch msg = m[2]; {
	case anchorError.MatchString(msg): // a password may begin with an asterisk
		msg = "an alias (*) of an anchor (&) that is not there: put text that begins with an asterisk in quotes"
		line = firstBadLineOf(data, anchorError.MatchString)
	case indentError.MatchString(msg):
		line = firstBadLine(data, msg)
	case grammarError.MatchString(msg):
		line++
	}
	// The parser reports what is missing at the end of the file, possibly behind the last line.
	lines := bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")) + 1
	return min(max(line, 1), lines), msg
}

// firstBadLine searches the shortest beginning of data that has the error. Its last line is the line of the mistake,
// because a beginning of a correct block of YAML, cut between lines, never has an error of this sort.
func firstBadLine(data []byte, msg string) int {
	return firstBadLineOf(data, func(text string) bool { return strings.HasSuffix(text, msg) })
}

// firstBadLineOf is like firstBadLine, for the errors that meant accepts.
func firstBadLineOf(data []byte, meant func(text string) bool) int {
	lines := bytes.SplitAfter(data, []byte("\n"))
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		err := syntaxOf(bytes.Join(lines[:i+1], nil))
		return err != nil && meant(strings.TrimPrefix(err.Error(), "yaml: "))
	})
}

// syntaxOf returns the first syntax error of a stream, or nil.
func syntaxOf(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
