"""How people ask: the wordings of every prompt. `train.questions` says what the answers are."""

DESCRIBE = (
    "Describe this image",
    "Describe this picture",
    "Describe the image",
    "Describe the photo",
    "Describe it",
    "What do you see?",
    "What's in this photo?",
    "What is in this picture?",
    "What's in this image?",
    "What is shown here?",
    "What can you see?",
    "What is this?",
    "What does the picture show?",
    "What's this?",
    "Tell me about this picture",
    "Tell me what you see",
    "Explain this image",
    "Can you describe this image?",
    "What is happening here?",
    "What's going on in this picture?",
    "Describe what you see",
    "Look at this",
    "Give me a description of this photo",
    "Please describe the picture",
    "What is in the image?",
    "Describe this image in detail",
    "Describe the picture in one or two sentences",
    "Show me what you see",
    "What do you notice in this picture?",
    "What is in the photo?",
    "What's in the picture?",
    "What am I looking at?",
    "Can you tell me what is in this image?",
    "Write a description of this image",
    "Describe",
    "What is it?",
    "Go on",
    "Hello",
    "Help me understand this picture",
)
SCENERY = (
    "Describe the scenery",
    "Describe the scene",
    "What is the scenery like?",
    "Describe the landscape",
    "What kind of scene is this?",
    "Describe the setting",
    "Where was this picture taken?",
    "What place is this?",
    "What scene is this?",
    "Tell me about the scenery",
    "Describe the surroundings",
    "What does the scene look like?",
)
CAPTION = (
    "Caption this",
    "Write a caption",
    "Give me a short caption",
    "A short caption, please",
    "Caption this image",
    "Write a short caption for this picture",
    "Give this image a title",
    "Summarize this picture",
    "Describe this image briefly",
    "In a few words, what is this?",
    "Short description",
    "Write alt text for this image",
)
LIST = (
    "List the things in this picture",
    "List everything you see",
    "What things are in the image?",
    "List the objects",
    "Name the things in this photo",
    "Which objects are there?",
    "What objects do you see?",
    "Make a list of what you see",
    "Name everything in the picture",
    "Enumerate the objects in this image",
    "What items are shown?",
    "List all objects in the image",
)
STORY = (
    "Write a story about this image",
    "Write a story about this picture",
    "Tell me a story",
    "Write a short story",
    "Tell a story about this photo",
    "Make up a story about what you see",
    "Write a story",
    "Invent a story about this",
    "Tell me a story about this picture",
    "A story, please",
    "Write a tale about this scene",
    "Write a story of about 150 words about this image",
)

COUNT = (
    "How many {} are there?",
    "How many {} do you see?",
    "How many {} are in the picture?",
    "Count the {}",
    "How many {} can you count?",
    "What is the number of {}?",
    "How many {} does the image show?",
    "How many {} are in this photo?",
)
COUNT_ALL = (
    "How many things are there?",
    "How many objects are in the picture?",
    "Count the objects",
    "How many things do you see in all?",
)
IS_THERE = (
    "Is there {} in the picture?",
    "Is there {}?",
    "Do you see {}?",
    "Can you see {}?",
    "Does the image show {}?",
    "Is {} in this photo?",
    "Is there {} here?",
    "Does this picture contain {}?",
)
IS_IT = ("Is it {}?", "Is this {}?", "Is that {}?")
IS_RELATED = ("Is {a} {relation} {b}?", "Would you say that {a} is {relation} {b}?")
WHERE = (
    "Where is {}?",
    "Where in the picture is {}?",
    "In which part of the image is {}?",
    "Where do you see {}?",
    "Where can I find {}?",
)
WHERE_TO = (
    "Where is {a} relative to {b}?",
    "Where is {a} compared with {b}?",
    "Where is {a} in relation to {b}?",
    "How does {a} stand to {b}?",
    "Is {a} left, right, above or below {b}?",
)
WHAT_IS = ("What is {} {}?", "What do you see {} {}?", "What stands {} {}?", "Which thing is {} {}?")
COLOR = (
    "What color is the background?",
    "What colour is the background?",
    "Which color is behind the things?",
    "What is the color of the background?",
)
BACKGROUND = (
    "What is in the background?",
    "Describe the background",
    "What is the background?",
    "What is behind the things?",
    "What's behind?",
)
KIND = (
    "What {} is this?",
    "Which {} is this?",
    "What {} do you see?",
    "What kind of {} is this?",
    "Which {} is shown?",
    "What {} is in the picture?",
    "What {} is that?",
    "What type of {} is this?",
    "Name the {}",
)
KIND_OF = ("What kind of thing is {}?", "What is {}?", "What sort of thing is {}?")

# Without a picture: what people say, and what is answered.
HELLO = (
    ("Hello", "Hello! Show me an image and I will tell you what I see."),
    ("Hi", "Hi! Give me an image, and I will describe it."),
    ("Good morning", "Good morning! Show me an image and I will tell you what I see."),
    ("Who are you?", "I am a small model that describes simple drawn scenes. Show me an image."),
    ("What are you?", "I am Saccade's small vision-language model. I describe images made of drawings."),
    (
        "What can you do?",
        "I can name, count and place the things in an image, and tell a short story about it.",
    ),
    ("What is your name?", "I am the small model that comes with Saccade. I describe images."),
    ("Help", "Give me an image and ask what is in it, how many there are, or where they are."),
    ("Thank you", "You are welcome. Show me another image."),
    ("How are you?", "I am well. Show me an image and I will describe it."),
    ("Goodbye", "Goodbye! Come back with an image."),
)
NO_PICTURE = (
    "I do not see an image. Please give me one, and I will tell you what is in it.",
    "There is no image here. Please show me one.",
    "I need an image to answer that. Please add one.",
    "No image came with this question, so I cannot tell.",
)
CANNOT = (
    "I am a small model that describes images. I cannot help with that.",
    "That is more than I know. I can describe an image, if you show me one.",
    "I only describe images. Please show me one.",
)
OTHER = (
    "What is the capital of France?",
    "Write a poem",
    "Tell me a joke",
    "What is 2 + 2?",
    "Translate this to German",
    "Write a function that sorts a list",
    "What is the weather today?",
    "Who won the match?",
    "null",
    "42",
    "test",
    "Tell me about history",
    "What is love?",
    "How do I cook rice?",
    "Why is the sky blue?",
    "Explain gravity",
    "Write an email to my boss",
    "What time is it?",
    "Can you sing?",
    "Say something",
    "Once upon a time",
    "The quick brown fox",
    "Give me some advice",
    "What is the meaning of life?",
)
