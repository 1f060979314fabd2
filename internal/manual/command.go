// Package manual makes the manual pages and the shells' completion from the definitions that the program itself goes by:
// kong's of its commands and package config's of its keys. So none of them can tell of what there is not.
package manual

import (
	"strings"

	"github.com/alecthomas/kong"
)

// command is one command, the program itself included, as a person types it.
type command struct {
	// program is the name of the program.
	program string
	// at is what has been typed to get here: "", "owed", "owed drop".
	at       string
	help     string
	commands []command
	flags    []flag
	args     []value
}

// value is what is typed behind a flag, or alone.
type value struct {
	name, help string
	// values are all that there may be; nil for what cannot be listed.
	values []string
	file   bool
}

// flag is an option. Its value's name is "" if it takes none.
type flag struct {
	names []string // --config, -c
	help  string
	value value
}

// tree reads kong's model, without what is hidden. What a default command takes, its parent takes.
func tree(node *kong.Node) command {
	c := command{program: programOf(node), at: strings.TrimSpace(commandPath(node)), help: node.Help}
	c.take(node)
	for _, child := range node.Children {
		if child.Hidden {
			continue
		}
		if child == node.DefaultCmd {
			c.take(child)
			continue
		}
		c.commands = append(c.commands, tree(child))
	}
	return c
}

func (c *command) take(node *kong.Node) {
	for _, f := range node.Flags {
		if !f.Hidden {
			c.flags = append(c.flags, newFlag(f))
		}
	}
	for _, arg := range node.Positional {
		c.args = append(c.args, value{name: arg.Name, help: arg.Help, values: listed(arg), file: arg.Name == "file"})
	}
}

func programOf(node *kong.Node) string {
	if node.Parent == nil {
		return node.Name
	}
	return programOf(node.Parent)
}

// commandPath is without the program's name and what a command takes.
func commandPath(node *kong.Node) string {
	if node.Parent == nil {
		return ""
	}
	return commandPath(node.Parent) + " " + node.Name
}

func newFlag(f *kong.Flag) flag {
	made := flag{names: []string{"--" + f.Name}, help: f.Help}
	if f.Short != 0 {
		made.names = append(made.names, "-"+string(f.Short))
	}
	if !f.IsBool() {
		made.value = value{name: f.FormatPlaceHolder(), values: listed(f.Value), file: f.PlaceHolder == "FILE"}
		if f.HasDefault {
			made.help += " Default: " + f.Default + "."
		}
	}
	return made
}

func listed(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return v.EnumSlice()
}

// each calls visit for the command and all below it.
func (c command) each(visit func(command)) {
	visit(c)
	for _, child := range c.commands {
		child.each(visit)
	}
}

// everyFlag are the command's own flags and those of the program, which may stand anywhere.
func (c command) everyFlag(program command) []flag {
	if c.at == "" {
		return c.flags
	}
	return append(append([]flag{}, program.flags...), c.flags...)
}
